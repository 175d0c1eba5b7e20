"""The Chat page: streaming answers of real (random) models, one or two columns, and everything one does to a conversation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect

from afina.core.paths import Home
from tests.browser.conftest import PATIENCE, Open, Studio, serious
from tests.browser.tuned import make_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Studio]:
    """A base model "tiny", with room for long answers, and "tuned", whose random adapter makes it answer otherwise."""
    base = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("base") / "tiny"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100_000}))
    root = tmp_path_factory.mktemp("studio")
    make_run(Home(root).create(), "run-tuned", "tuned", base)
    made = Studio(root, base)
    yield made
    made.server.stop()


def short(page: Page, tokens: int = 12, temperature: str = "0") -> None:
    """Answers of at most `tokens` tokens; at temperature 0 always the same ones."""
    page.locator("#options").click()
    page.locator("#s-max_tokens").fill(str(tokens))
    page.locator("#s-temperature").fill(temperature)
    page.locator("#options").click()


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def settled(page: Page) -> None:
    """Until nobody is answering."""
    expect(page.locator("#chat")).not_to_have_class(re.compile("busy"), timeout=PATIENCE)


def sent(page: Page) -> list[dict[str, Any]]:
    """What the page asks the API from now on."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/chat"):
            bodies.append(dict(request.post_data_json or {}))

    page.on("request", note)
    return bodies


def lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


def test_the_same_question_to_base_and_tuned_at_once(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/chat?model=tuned&base=tiny")
    expect(page.locator("#model-0")).to_have_value("tiny")
    expect(page.locator("#model-1")).to_have_value("run-tuned")
    expect(page.locator("#prompt")).to_be_focused()
    short(page)
    ask(page, "Who are you?")
    expect(page.locator(".said-text")).to_have_text("Who are you?")
    settled(page)
    replies = page.locator(".reply")
    expect(replies).to_have_count(2)
    for reply in replies.all():
        expect(reply.locator(".reply-foot")).to_contain_text(re.compile(r"tokens/s"))
        expect(reply).to_have_attribute("aria-busy", "false")
    base, tuned = (reply.locator(".reply-text").inner_text() for reply in replies.all())
    assert len({base, tuned, ""}) == 3
    assert not serious(page, axe)
    page.set_viewport_size({"width": 390, "height": 844})
    first, second = (reply.bounding_box() for reply in replies.all())
    assert first
    assert second
    assert second["y"] > first["y"]
    page.reload()
    expect(page.locator(".reply-text").nth(1)).to_have_text(tuned, use_inner_text=True)
    expect(page.locator("#model-1")).to_have_value("run-tuned")


def test_each_model_is_told_only_its_own_answers(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny")
    short(page)
    page.locator("#options").click()
    page.locator("#s-system").fill("You are Lafaek.")
    bodies = sent(page)
    ask(page, "First?")
    settled(page)
    expect(page.locator(".reply-foot")).to_contain_text("12 tokens")
    page.locator("#compare").click()
    ask(page, "Second?")
    settled(page)
    system = {"role": "system", "content": "You are Lafaek."}
    told = {str(body["model"]): body["messages"] for body in bodies[1:]}
    assert [item["role"] for item in told["tiny"]] == ["system", "user", "assistant", "user"]
    assert told["run-tuned"] == [system, {"role": "user", "content": "Second?"}]
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0, 12)
    expect(page.locator(".reply").last).to_contain_text("tuned has not seen what stands above.")


def test_stop_keeps_what_was_said_and_again_asks_anew(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny")
    short(page, tokens=8000)  # at temperature 0 this model never comes to an end by itself
    ask(page, "Tell me everything.")
    expect(page.locator(".reply-foot")).to_contain_text("Answering", timeout=PATIENCE)
    expect(page.locator("#send")).to_be_hidden()
    page.locator("#stop").click()
    expect(page.locator(".reply-foot")).to_contain_text("stopped by you")
    expect(page.locator("#prompt")).to_be_focused()
    assert page.locator(".reply-text").text_content()
    page.locator("#options").click()
    page.locator("#s-max_tokens").fill("5")
    page.get_by_role("button", name="Answer again").click()
    settled(page)
    expect(page.locator(".reply-foot")).to_contain_text("cut at the longest answer")
    expect(page.locator(".exchange")).to_have_count(1)


def test_edit_copy_and_clear(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny", permissions=["clipboard-read", "clipboard-write"])
    short(page, tokens=5)
    ask(page, "One")
    settled(page)
    ask(page, "Two")
    settled(page)
    page.get_by_role("button", name="Edit").first.click()
    area = page.get_by_label("Your message, changed")
    expect(area).to_be_focused()
    area.press("Escape")
    expect(page.locator(".exchange")).to_have_count(2)
    page.get_by_role("button", name="Edit").first.click()
    area.fill("Three")
    area.press("Enter")
    settled(page)
    expect(page.locator(".said-text")).to_have_text(["Three"])
    page.locator(".said").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "Three"
    page.locator("#clear").click()
    expect(page.locator(".exchange")).to_have_count(0)
    page.get_by_role("button", name="Bring the conversation back").click()
    expect(page.locator(".exchange")).to_have_count(1)


def test_keys_and_limits(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny")
    bodies = sent(page)
    prompt = page.locator("#prompt")
    prompt.press("Enter")
    prompt.type("one")
    prompt.press("Shift+Enter")
    prompt.type("two")
    expect(prompt).to_have_value("one\ntwo")
    page.locator("#options").click()
    page.locator("#s-temperature").fill("7")
    prompt.press("Enter")
    expect(page.locator("#s-temperature-error")).to_have_text("Write a number from 0 to 2.")
    expect(page.locator("#s-temperature")).to_be_focused()
    assert not bodies
    page.get_by_role("button", name="Back to the defaults").click()
    expect(page.locator("#s-temperature")).to_have_value("0.7")
    page.locator("#s-top_p").fill("0.5")
    page.locator("#s-top_p").blur()
    page.reload()
    expect(page.locator("#s-top_p")).to_have_value("0.5")


def test_errors_stay_where_the_answer_would_be(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny")
    problem = {
        "code": "no_memory",
        "message": "The memory is full.",
        "remedy": "Choose a smaller model.",
        "field": None,
        "value": None,
    }
    failure = {"error": {"code": "no_memory", "kind": "failed", "message": "x", "problems": [problem]}}
    broken = lines({"phase": "loading"}, {"phase": "answering"}, {"text": "Half a "}, failure)

    def fail(route: Route) -> None:
        route.fulfill(status=200, content_type="application/x-ndjson", body=broken)

    page.route("**/api/v1/chat", fail)
    ask(page, "Hello?")
    expect(page.locator(".reply-text")).to_contain_text("Half a")
    expect(page.locator(".reply-text")).to_contain_text("The memory is full. Choose a smaller model.")
    page.unroute("**/api/v1/chat")
    page.route("**/api/v1/chat", lambda route: route.abort("connectionrefused"))
    ask(page, "And now?")
    expect(page.locator(".reply").last).to_contain_text("The server does not answer")


def test_answers_are_never_markup(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=tiny")
    bait = '<img src=x onerror="document.title=1">\n  <b>two</b>'
    body = lines({"text": bait}, {"done": True, "stop_reason": "stop", "tokens": 3, "tokens_per_second": 1.5})
    page.route(
        "**/api/v1/chat", lambda route: route.fulfill(status=200, content_type="application/x-ndjson", body=body)
    )
    ask(page, "<i>Hello</i>")
    expect(page.locator(".reply-text")).to_have_text(bait)
    expect(page.locator(".reply-foot")).to_contain_text("finished · 3 tokens · 1.5 tokens/s")
    assert page.locator(".thread img, .thread b, .thread i").count() == 0


def test_a_model_that_is_gone_is_said_and_replaced(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/chat?model=vanished")
    expect(page.locator("#toasts")).to_contain_text("vanished")
    expect(page.locator("#model-0")).to_have_value("run-tuned")
