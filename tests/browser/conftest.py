"""A real Chromium on a real server with a tiny model. One browser for all tests, one server a module."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from afina.core.paths import Home
from tests.web.conftest import Server, free_port

FOLDER = Path(__file__).parent
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 90_000
"""Milliseconds for what a worker does: it starts a process and imports torch."""


def find_chromium() -> str | None:
    """The system's Chromium, or the one AFINA_CHROMIUM names."""
    named = os.environ.get("AFINA_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: install the package “chromium” to run the browser tests")
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


class Studio:
    """A home with a tiny model and a small dataset, and the server that serves it."""

    def __init__(self, root: Path, model: Path, name: str = "tiny") -> None:
        self.home = Home(root).create()
        shutil.copytree(model, self.home.models / name)
        rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}."} for n in range(40)]
        (self.home.datasets / "sums.json").write_text(json.dumps(rows), encoding="utf-8")
        self.server = Server(self.home, free_port())

    @property
    def address(self) -> str:
        """Where the pages are."""
        return self.server.address

    def kill(self) -> None:
        """SIGKILL the server; what it started goes on."""
        self.server.stop(signal.SIGKILL)

    def restart(self) -> None:
        """A new server at the old address."""
        self.server = Server(self.home, self.server.port)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Studio]:
    """One for the tests of a module, which run in their order."""
    made = Studio(tmp_path_factory.mktemp("studio"), tiny_model)
    yield made
    made.server.stop()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """`open_page(address, width=1280, theme="light", language="en")`: a page in a browser that knows nothing yet.

    A page that logs an error, or throws one, fails the test; a lost connection or a refusal that says why is not such an error.
    """
    contexts = []
    complaints: list[str] = []

    def complain(kind: str, text: str) -> None:
        if (
            kind == "error"
            and "WebSocket" not in text
            and not any(lost in text for lost in ("ERR_CONNECTION_", "ERR_EMPTY_RESPONSE"))
            and not any(said in text for said in ("status of 4", "status of 503"))
        ):
            complaints.append(text)

    def open_(address: str, width: int = 1280, theme: Any = "light", language: str = "en", **more: Any) -> Page:
        height = 900 if width > 600 else 844
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, locale=language, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: complain(message.type, message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm; the tests that need it are skipped where there is no npm or no network."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine: axe-core, which checks accessibility, comes from there")
    folder = tmp_path_factory.mktemp("npm")
    shutil.copy(FOLDER / "package.json", folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if done.returncode != 0 or not source.is_file():
        pytest.skip(f"npm cannot get axe-core: {done.stderr.strip()[-200:]}")
    return source.read_text(encoding="utf-8")


def serious(page: Page, axe_source: str) -> list[str]:
    """What axe-core finds serious or critical: "rule: target" lines."""
    page.evaluate(axe_source)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{item['id']}: {node['target']} {node['failureSummary']}"
        for item in found["violations"]
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"]
    ]


LARGEST = 60_000
"""Bytes over the wire of the first load of any page."""
MOST = 10
"""Requests of the first load of any page."""


def assert_light(page: Page, address: str, path: str) -> None:
    """Load a page in a browser that knows nothing yet, and count everything it asks for."""
    seen: list[Response] = []
    page.on("response", lambda answer: seen.append(answer))
    page.goto(address + path)
    page.wait_for_load_state("networkidle")
    parts = ("responseBodySize", "responseHeadersSize")
    sizes = {answer.url: sum(answer.request.sizes()[part] for part in parts) for answer in seen}
    assert all(url.startswith(address) for url in sizes), "nothing comes from elsewhere"
    assert len(seen) <= MOST, sorted(sizes)
    assert sum(sizes.values()) <= LARGEST, sizes
