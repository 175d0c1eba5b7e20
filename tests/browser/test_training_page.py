"""The Training page: from the first visit to a finished run, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, Open, Studio

pytestmark = pytest.mark.browser


def set_advanced(page: Page, **values: str) -> None:
    """Open Advanced and fill in settings."""
    page.locator("#advanced").evaluate("fold => { fold.open = true; }")
    for name, value in values.items():
        page.locator(f"#f-{name}").fill(value)


def test_first_visit_to_the_result_by_keyboard(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/")
    expect(page).to_have_url(re.compile(r"/training$"))
    expect(page.locator(".checklist .done")).to_have_count(3)
    expect(page.locator('[data-plan="steps"]')).to_have_text("27")
    expect(page.locator('[data-plan="rows"]')).to_have_text("35 + 5 to test")
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?run="))
    expect(page.locator("#run [data-part=status]")).to_have_text("Finished", timeout=PATIENCE)
    expect(page.locator("[data-part=doing]")).to_contain_text("Finished after")
    expect(page.locator("[data-part=train-loss]")).to_have_text(re.compile(r"^\d+\.\d{3}$"))
    expect(page.locator("[data-part=validation-loss]")).to_have_text(re.compile(r"^\d+\.\d{3}$"))
    expect(page.locator(".answer")).to_have_count(3)
    expect(page.locator("[data-part=console] div").first).to_be_visible()
    link = page.locator("[data-part=chat]").get_attribute("href")
    assert link
    assert re.fullmatch(r"/chat\?model=[^&]+&base=tiny", link)


def test_a_reload_and_another_browser_show_the_same(studio: Studio, open_page: Open) -> None:
    pages = [open_page(f"{studio.address}/training"), open_page(f"{studio.address}/training")]
    pages[0].reload()
    seen = []
    for page in pages:
        expect(page.locator("[data-part=best]")).to_contain_text("at step")
        page.locator("[data-part=numbers] summary").click()
        expect(page.locator("[data-part=numbers] tbody tr")).to_have_count(28)
        seen.append(page.locator("[data-part=numbers] tbody").inner_text())
    assert seen[0] == seen[1]
    assert len(seen[0].splitlines()) == 28, "27 steps and the validation before the first"


def test_the_chart_is_read_with_the_arrow_keys(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training")
    expect(page.locator("[data-part=best]")).to_contain_text("at step")
    chart = page.locator("[data-part=loss-chart]")
    chart.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert re.fullmatch(r"step 2, training \d\.\d{3}", chart.get_attribute("aria-valuetext") or "")
    expect(page.locator("[data-part=loss-reading]")).to_contain_text("step 2")
    page.locator("[data-part=scale] button").last.click()
    expect(page.locator("[data-part=scale] button").last).to_have_attribute("aria-pressed", "true")


def test_problems_stand_at_their_fields(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training")
    page.locator("#f-epochs").fill("0")
    page.locator("#f-learning_rate").fill("7")
    page.locator("#start").click()
    expect(page.locator("#form-problems .notice")).to_be_focused()
    expect(page.locator("#form-problems li")).to_have_count(2)
    expect(page.locator("#e-epochs")).not_to_be_empty()
    expect(page.locator("#f-learning_rate")).to_have_attribute("aria-invalid", "true")
    page.locator("#f-epochs").fill("")
    page.locator("#start").click()
    expect(page.locator("#e-epochs")).to_contain_text("Write a number here")
    page.locator('input[name="dataset"]').uncheck()
    page.locator("#start").click()
    expect(page.locator("#e-dataset")).to_contain_text("Tick at least one dataset")


def test_a_half_filled_form_survives_a_reload(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training")
    page.locator("#f-epochs").fill("7")
    page.locator('input[name="method"][value="full"]').check()
    set_advanced(page, notes="about coffee")
    expect(page.locator("#f-learning_rate")).to_have_attribute("placeholder", "0.00002")
    expect(page.locator("[data-group=lora]")).to_be_hidden()
    page.reload()
    expect(page.locator("#f-epochs")).to_have_value("7")
    expect(page.locator('input[name="method"][value="full"]')).to_be_checked()
    expect(page.locator("#f-notes")).to_have_value("about coffee")
    page.locator("#defaults").click()
    expect(page.locator("#f-epochs")).to_have_value("3")


def test_a_file_is_added_and_mixed(studio: Studio, open_page: Open, tmp_path: Path) -> None:
    rows = [{"prompt": f"Word {n}", "completion": f"Answer {n}"} for n in range(30)]
    path = tmp_path / "more words.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    page = open_page(f"{studio.address}/training")
    page.locator("#upload").set_input_files(str(path))
    added = page.locator(".pick", has_text="more words.json")
    expect(added.locator("input[type=checkbox]")).to_be_checked()
    expect(added).to_contain_text("30 rows")
    page.locator(".pick", has_text="sums.json").locator("input[type=checkbox]").check()
    expect(added.locator(".weight")).to_be_visible()
    added.locator(".weight").fill("0.5")
    expect(page.locator('[data-plan="rows"]')).not_to_contain_text("35")


def test_a_run_outlives_the_server_and_is_stopped_with_its_best_state(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training")
    expect(page.locator('[data-plan="steps"]')).to_have_text("27")
    page.locator("#f-epochs").fill("900")
    set_advanced(page, name="long walk", eval_every="20")
    page.locator("#start").click()
    expect(page.locator("#strip")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("[data-part=best]")).to_contain_text("at step", timeout=PATIENCE)
    expect(page).to_have_title(re.compile(r"^\d+ % · long walk"), timeout=PATIENCE)

    studio.kill()
    expect(page.locator("#offline")).to_be_visible()
    before = page.locator("[data-part=doing]").inner_text()
    studio.restart()
    expect(page.locator("#offline")).to_be_hidden(timeout=20_000)
    expect(page.locator("[data-part=doing]")).not_to_have_text(before)

    page.locator("[data-part=stop]").click()
    expect(page.locator("#stop-dialog")).to_be_visible()
    page.locator('#stop-dialog [value="best"]').click()
    expect(page.locator("#run [data-part=status]")).to_have_text("Stopped", timeout=PATIENCE)
    expect(page.locator("[data-part=doing]")).to_have_text("Stopped. The best state was kept.")
    expect(page.locator("#strip")).to_be_hidden()


def test_general_examples_are_mixed_in_with_one_press(studio: Studio, open_page: Open) -> None:
    pairs = "".join(f"Question: What is thing {n}?\nAnswer: Thing {n} is a thing.\n\n" for n in range(80))
    (studio.home.datasets / "timor-leste.txt").write_text(pairs)
    page = open_page(f"{studio.address}/training?dataset=sums.json")
    page.get_by_role("button", name="Mix in 20 % general examples").click()
    expect(page.locator('input[name="dataset"][value="timor-leste.txt"]')).to_be_checked()
    expect(page.get_by_label("Weight of timor-leste.txt")).to_have_value("0.125")
    expect(page.locator("#mix")).to_be_hidden()
    page.locator("#advanced > summary").click()
    page.locator("#f-validation_rows").fill("12")
    expect(page.locator('[data-plan="rows"]')).to_contain_text("+ 12 to test")


def test_a_bad_setting_is_called_by_its_label(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training", language="pt")
    page.locator("#f-epochs").fill("0")
    page.locator("#f-learning_rate").fill("7")
    page.locator("#start").click()
    expect(page.locator("#form-problems li")).to_have_count(2)
    expect(page.locator("#form-problems")).to_contain_text("“Épocas” deve ser maior que 0")
    expect(page.locator("#e-learning_rate")).to_contain_text("“Taxa de aprendizado”")
    expect(page.locator("#form-problems")).not_to_contain_text("learning_rate")


LATE_ESTIMATE = """
const real = window.fetch;
let first = true, start;
const started = new Promise((resolve) => { start = resolve; });
window.fetch = async (address, options) => {
  const isPlan = String(address).endsWith("runs/plan");
  if (isPlan && first) { first = false; window.held = true; const answer = await real(address, { ...options, signal: undefined });
    await started; if (options.signal.aborted) throw new DOMException("", "AbortError"); window.late = true; return answer; }
  const answer = await real(address, options);
  if (String(address).endsWith("/runs") && options?.method === "POST") setTimeout(start, 50);
  return answer;
};
"""


def test_a_late_estimate_leaves_the_problems_of_start(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/models")
    page.add_init_script(LATE_ESTIMATE)
    page.goto(f"{studio.address}/training")
    page.wait_for_function("window.held")
    page.evaluate("""() => { const field = document.querySelector("#f-epochs"); field.value = "0";
        field.dispatchEvent(new Event("input", { bubbles: true })); document.querySelector("#start").click(); }""")
    expect(page.locator("#form-problems li")).to_have_count(1)
    page.wait_for_timeout(1000)
    expect(page.locator("#form-problems li")).to_have_count(1)
    assert not page.evaluate("window.late")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_covers_what_the_keyboard_is_at(studio: Studio, open_page: Open, width: int) -> None:
    page = open_page(f"{studio.address}/training", width=width)
    page.locator("#f-model").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, covered = page.evaluate(
            """() => {
              const here = document.activeElement;
              const box = here.getBoundingClientRect();
              const cover = document.querySelector(innerWidth > 960 ? ".start" : ".tabs");
              const top = cover.getBoundingClientRect().top;
              return [here.id, !cover.contains(here) && box.bottom > top && box.top < top + cover.offsetHeight];
            }"""
        )
        assert not covered, name
        if name == "start":
            return
    raise AssertionError("the start button was not reached")


def test_the_focus_follows_the_run_that_was_started(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/training?dataset=sums.json")
    page.locator("#f-epochs").fill("1")
    expect(page.locator('[data-plan="steps"]')).to_have_text("9")
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?run="))
    expect(page.locator("#run-name")).to_be_focused()
    expect(page.locator("#run [data-part=status]")).to_have_text("Finished", timeout=PATIENCE)
