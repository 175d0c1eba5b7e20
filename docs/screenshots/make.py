"""Pictures of every page: both themes, 1280 and 390 px wide, in Tetum and English, from real runs of a real model.

`python docs/screenshots/make.py` trains the starter model twice, for some minutes, and renews all pictures in this
folder; with `--home` it takes them of the home folder of a person who has trained already. They are saved with 128
colours, so that all of them together stay under 3 MB. Needs Chromium (AFINA_CHROMIUM may name it) and the development
dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
FIRST = {"name": "first try", "max_steps": 8, "eval_every": 4, "lora_rank": 8}
SECOND = {"name": "coffee and tais", "tags": ["timor-leste"]}


@dataclass(frozen=True)
class Shot:
    """A page to picture: its address (`{run}` is the last run's id), and what to do before the picture is taken."""

    name: str
    path: str
    prepare: Callable[[Page], None] = lambda page: None
    whole: bool = False


def compare_all(page: Page) -> None:
    """Tick all runs."""
    for box in page.locator(".compare").all():
        box.check()
    page.locator("#compare-legend li").first.wait_for()


def ask(page: Page) -> None:
    """Ask base and tuned model the same question and wait for both answers."""
    page.locator("textarea").last.fill("What is a tais?")
    page.keyboard.press("Enter")
    for place in (0, 1):
        page.locator('.reply[aria-busy="false"]').nth(place).wait_for(timeout=180_000)
    page.evaluate("scrollTo(0, 0)")


SHOTS = [
    Shot("training", "/training"),
    Shot("datasets", "/datasets"),
    Shot("dataset", "/datasets/timor-leste.txt"),
    Shot("models", "/models"),
    Shot("runs", "/runs"),
    Shot("compare", "/runs", compare_all),
    Shot("run", "/runs/{run}", whole=True),
    Shot("chat", "/chat?model={run}&base={base}", ask),
    Shot("model", "/models/{run}"),
    Shot("api", "/api/v1/docs"),
    Shot("error", "/nothing-here"),
]


class Server:
    """`afina serve` on a home of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "afina.cli", "serve", "--home", str(home), "--port", str(port)]
        )
        self.wait(lambda: self._answers(), 60)

    def _answers(self) -> bool:
        try:
            return bool(self.call("GET", "health"))
        except OSError:
            return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the API."""
        request = urllib.request.Request(f"{self.address}/api/v1/{path}", method=method)  # noqa: S310 - our own server
        data = None if body is None else json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, data) as answer:  # noqa: S310
            return json.load(answer)

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Until `done` says so."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.5)

    def train(self, **spec: Any) -> str:
        """A finished run; returns its id."""
        run = str(self.call("POST", "runs", {"model": "starter", "dataset": "timor-leste.txt", **spec})["id"])
        self.wait(lambda: self.call("GET", f"runs/{run}")["status"] in ("succeeded", "stopped", "failed"), 900)
        return run

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(20)


def prepare(home: Path, server: Server, runs: list[dict[str, Any]]) -> dict[str, str]:
    """The model, the datasets and the runs; returns what the addresses need."""
    for sample in (ROOT / "examples").iterdir():
        if sample.suffix in (".txt", ".jsonl"):
            shutil.copy(sample, home / "training" / "datasets")
    (home / "training" / "datasets" / "half-done.json").write_text(
        '[{"instruction": "Who?", "output": ""}, {"output": 3}]'
    )
    model = server.call("POST", "models", {"source": "starter"})["id"]
    server.wait(lambda: server.call("GET", f"models/{model}")["status"] == "ready", 300)
    return {"run": [server.train(**spec) for spec in runs][-1], "base": model}


def found(server: Server) -> dict[str, str]:
    """The longest finished run of a home that is used already, and its base."""
    done = [run for run in server.call("GET", "runs") if run["status"] == "succeeded"]
    run = max(done, key=lambda run: run["step"])
    return {"run": run["id"], "base": run["model"]}


def picture(browser: Browser, address: str, shot: Shot, language: str, theme: Any, size: str, path: Path) -> None:
    """One picture in a browser that knows nothing yet."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, locale=language)
    page = context.new_page()
    page.goto(address)
    page.wait_for_load_state("networkidle")
    shot.prepare(page)
    page.wait_for_timeout(600)
    page.screenshot(path=path, full_page=shot.whole)
    context.close()
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Parse, train, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home folder with a finished run, in place of training now")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", default="", help="names that begin with this")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("AFINA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    shots = [shot for shot in SHOTS if shot.name.startswith(given.only)]
    ways = [(a, b, c) for a in ("tet", "en") for b in ("light", "dark") for c in SIZES]
    with tempfile.TemporaryDirectory(prefix="afina-") as folder, sync_playwright() as playwright:
        home = given.home or Path(folder)
        server = Server(home)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            names = found(server) if given.home else prepare(home, server, [FIRST, SECOND])
            for shot in shots:
                for language, theme, size in ways:
                    path = given.out / f"{shot.name}-{SIZES[size][0]}-{theme}-{language}.png"
                    picture(browser, server.address + shot.path.format(**names), shot, language, theme, size, path)
                    print(path.name)
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
