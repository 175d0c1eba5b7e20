"""What holds for every page: weight, accessibility, small screens, both themes, all languages."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open, Studio, assert_light, serious

pytestmark = pytest.mark.browser

PAGES = [
    "/training", "/datasets", "/datasets/sums.json", "/write", "/models", "/runs", "/chat", "/api/v1/docs", "/nothing-here",
]  # fmt: skip


def settle(page: Page) -> None:
    """Until the page has asked for what it wants."""
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("path", PAGES)
def test_the_first_load_is_light(studio: Studio, open_page: Open, path: str) -> None:
    assert_light(open_page("about:blank"), studio.address, path)


@pytest.mark.parametrize("path", PAGES)
def test_nothing_serious_for_axe_in_either_theme(studio: Studio, open_page: Open, axe: str, path: str) -> None:
    for theme, width in (("light", 1280), ("dark", 390)):
        page = open_page(studio.address + path, width=width, theme=theme)
        settle(page)
        assert not serious(page, axe)


@pytest.mark.parametrize("language", ["tet", "pt", "id", "en"])
def test_each_language_fits_a_phone(studio: Studio, open_page: Open, language: str) -> None:
    page = open_page(studio.address + "/training", width=390, language=language)
    for path in PAGES:
        page.goto(studio.address + path)
        settle(page)
        assert page.locator("html").get_attribute("lang") == language
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        if path != "/chat":  # which has no room for a footer
            assert re.search(r"Afina \d+\.\d+\.\d+$", page.locator(".foot").inner_text()), path
        unfilled = re.findall(r"\{\w+\}|\b(?:phase|error|plan|form)\.[a-z]+\b", page.locator("body").inner_text())
        assert not unfilled or path == "/api/v1/docs", path  # whose addresses hold {name} and {ref}


def test_the_strip_of_a_run_fits_a_phone(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models", width=390, language="tet")
    # in one go: the page itself hides the strip again when it next hears that nothing is running
    width, name, stop = page.locator("#strip").evaluate(
        """strip => {
          strip.hidden = false;
          const name = strip.querySelector(".strip-name");
          name.textContent = "timor-leste-lora-2";
          strip.querySelector(".strip-numbers").textContent = "perda 3,137 · falta 2 min 20 s · 1 tan iha fila";
          const stop = strip.querySelector(".strip-stop");
          return [document.documentElement.scrollWidth, name.getBoundingClientRect().width, stop.getBoundingClientRect().right];
        }"""
    )
    assert width <= 390
    assert name > 80
    assert 0 < stop <= 390


def test_language_and_theme_are_remembered(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs")
    page.locator(".menu summary").click()
    page.get_by_role("link", name="Português").click()
    expect(page).to_have_url(re.compile("/runs$"))
    expect(page.locator("html")).to_have_attribute("lang", "pt")
    for _ in range(2):
        page.locator("#theme").click()
    page.goto(f"{studio.address}/models")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("html")).to_have_attribute("lang", "pt")


def test_the_keyboard_reaches_the_content_first(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    inside = page.evaluate("document.querySelector('main').contains(document.activeElement)")
    assert inside


def told(page: Page, *runs: dict[str, object]) -> None:
    """Let the page believe that these runs are in progress."""
    page.route_web_socket("**/api/v1/live", lambda socket: socket.send(json.dumps({"runs": runs})))


RUN = {"id": "a", "name": "tais", "status": "queued", "queue_position": None, "step": 0, "total_steps": None}


def test_the_strip_says_only_what_is_known(studio: Studio, open_page: Open) -> None:
    page = open_page("about:blank")
    later = {"train_loss": None, "seconds_left": None}
    told(page, RUN | later | {"status": "stopping", "train_loss": 2.5, "seconds_left": 90}, RUN | later)
    page.goto(f"{studio.address}/models")
    expect(page.locator(".strip-numbers")).to_have_text("Stopping · loss 2.500 · 1 more in line")
    told(page, RUN | later | {"status": "running"}, RUN | later)
    page.reload()
    expect(page.locator(".strip-numbers")).to_have_text("1 more in line")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_chat_fits_beside_the_strip(studio: Studio, open_page: Open, width: int) -> None:
    page = open_page("about:blank", width=width)
    told(page, RUN | {"train_loss": None, "seconds_left": None})
    page.goto(f"{studio.address}/chat")
    expect(page.locator("#strip")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") <= (900 if width == 1280 else 844)
