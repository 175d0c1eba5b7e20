"""Pictures of every page: both themes, 1280 and 390 px wide, in Tetum and English, from real runs of a real model.

`python docs/screenshots/make.py` trains the starter model twice for a minute or two and writes all pictures to
`build/screenshots`; `--readme` trains once and renews the few that the README shows, in this folder. Needs Chromium (AFINA_CHROMIUM may
name it) and the development dependencies.
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

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
FIRST = {"name": "first try", "max_steps": 8, "eval_every": 4, "lora_rank": 8}
SECOND = {"name": "coffee and tais", "max_steps": 24, "eval_every": 4, "tags": ["timor-leste"]}


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
    Shot("training-whole", "/training", whole=True),
    Shot("datasets", "/datasets"),
    Shot("dataset", "/datasets/timor-leste.txt"),
    Shot("models", "/models"),
    Shot("runs", "/runs"),
    Shot("compare", "/runs", compare_all),
    Shot("run", "/runs/{run}", whole=True),
    Shot("chat", "/chat?model={run}&base={base}", ask),
    Shot("error", "/nothing-here"),
]
README = {("training", "en", "light", "wide"), ("training", "tet", "light", "wide"), ("chat", "en", "light", "wide")}


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


def picture(browser: Browser, address: str, shot: Shot, language: str, theme: Any, size: str, path: Path) -> None:
    """One picture in a browser that knows nothing yet."""
    width, height = SIZES[size]
    scale = 2 if size == "narrow" else 1
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, locale=language, device_scale_factor=scale
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_load_state("networkidle")
    shot.prepare(page)
    page.wait_for_timeout(600)
    page.screenshot(path=path, full_page=shot.whole)
    context.close()


def main() -> None:
    """Parse, train, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="only the pictures of the README, into this folder")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--only", default="", help="names that begin with this")
    given = parser.parse_args()
    out = Path(__file__).parent if given.readme else given.out
    out.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("AFINA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        server = Server(home)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            names = prepare(home, server, [SECOND] if given.readme else [FIRST, SECOND])
            for shot in SHOTS:
                for language, theme, size in [
                    (a, b, c) for a in ("tet", "en") for b in ("light", "dark") for c in SIZES
                ]:
                    if not shot.name.startswith(given.only) or (
                        given.readme and (shot.name, language, theme, size) not in README
                    ):
                        continue
                    path = out / f"{shot.name}-{SIZES[size][0]}-{theme}-{language}.png"
                    picture(browser, server.address + shot.path.format(**names), shot, language, theme, size, path)
                    print(path.name)
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
