"""The Models pages: the trees, one model, adding and deleting."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from afina.core.paths import Home
from tests.browser.conftest import PATIENCE, Open, Studio, serious
from tests.browser.tuned import make_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model under the name that the studio gives it."""
    return Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Studio]:
    """One base model, "first" trained from it and "second" trained from "first", and a folder that is no whole model."""
    root = tmp_path_factory.mktemp("studio")
    home = Home(root).create()
    make_run(home, "run-first", "first", base, weights=False)
    make_run(home, "run-second", "second", base, "run-first", weights=False)
    (home.models / "half").mkdir()
    (home.models / "half" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    made = Studio(root, base)
    yield made
    made.server.stop()


def test_the_trees_go_from_base_to_descendants(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/models")
    tiny = page.locator(".trunk > li").filter(has=page.locator('[data-model="tiny"]'))
    child = tiny.locator("> .tree > li")
    expect(child.locator("> .model .model-name a")).to_have_text("first")
    expect(child.locator("> .model")).to_contain_text("trained on sums.json")
    expect(child.locator("> .tree > li .model-name a")).to_have_text("second")
    expect(child.locator("> .tree > li")).to_contain_text("from first")
    broken = page.locator('[data-model="half"]')
    expect(broken).to_contain_text("model_incomplete")
    expect(broken.get_by_role("link", name="Chat")).to_have_count(0)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not serious(page, axe)


def test_a_model_leads_to_chat_next_to_its_base_and_to_training(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models")
    expect(page.get_by_role("link", name="Chat with first")).to_have_attribute(
        "href", "/chat?model=run-first&base=tiny"
    )
    page.get_by_role("link", name="Train further: second").click()
    expect(page).to_have_url(re.compile(r"/training\?model=run-second$"))
    page.goto(f"{studio.address}/chat?model=run-first&base=tiny")
    expect(page.locator("#model-0")).to_have_value("tiny")
    expect(page.locator("#model-1")).to_have_value("run-first")


def test_one_model_whole(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/models/run-second")
    facts = page.locator(".facts")
    expect(facts.get_by_role("link", name="first")).to_have_attribute("href", "/models/run-first")
    expect(facts.get_by_role("link", name="sums.json")).to_be_visible()
    expect(facts).to_contain_text("2.500")
    assert not serious(page, axe)
    facts.get_by_role("link", name="first").click()
    expect(page.locator(".card").last).to_contain_text("Trained from this model")
    page.goto(f"{studio.address}/models/nothing")
    expect(page.locator(".error-page")).to_contain_text("There is no model")


def test_a_folder_is_added_and_errors_are_named(studio: Studio, base: Path, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models")
    page.get_by_role("button", name="Add a model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Write the path")
    page.locator("#f-source").fill("/no/such/folder")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("/no/such/folder")
    page.locator("#f-source").fill("hub:someone/small")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("the hub cannot be reached")
    page.locator("#f-source").fill(str(base))
    page.locator("#f-name").fill("copy")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator('[data-model="copy"]')).to_be_visible()
    expect(page.locator('[data-model="copy"][data-status="ready"]')).to_be_visible(timeout=PATIENCE)


def test_the_starter_is_one_press_away_when_it_is_missing(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models")
    asked: list[str] = []
    refusal = '{"error": {"code": "no_network", "kind": "unavailable", "message": "x", "problems": [{"code": "no_network", "message": "There is no network.", "remedy": "Connect, then try again."}]}}'

    def refuse(route: Route) -> None:
        asked.append(route.request.post_data or "")
        route.fulfill(status=503, content_type="application/json", body=refusal)

    page.route("**/api/v1/models", refuse)
    page.get_by_role("button", name="Add the starter model").click()
    expect(page.locator("#toasts")).to_contain_text("There is no network. Connect, then try again.")
    assert asked == ['{"source":"starter"}']


def test_delete_asks_first_and_says_why_it_cannot(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models")
    page.get_by_role("button", name="Delete tiny").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#toasts")).to_contain_text("is needed by")
    expect(page.locator('[data-model="tiny"]')).to_be_visible()
    page.get_by_role("button", name="Delete half").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator('[data-model="half"]')).to_have_count(0)
    page.get_by_role("button", name="Delete second").click()
    expect(page.get_by_role("dialog")).to_contain_text("Its run goes with it")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator('[data-model="run-second"]')).to_have_count(0)
    assert not (studio.home.runs / "run-second").exists()
