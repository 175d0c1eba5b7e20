"""The dataset workshop as a new user meets it: from a messy table to a started run, and everything on the way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from afina import actions
from tests.browser.conftest import PATIENCE, Open, Studio, assert_light, serious

pytestmark = pytest.mark.browser


def messy(rows: int = 60) -> str:
    """A table as people have them: an empty answer, an empty question, repeated rows, a stray quote."""
    lines = ["question,answer"]
    lines += [f'"What grows in village {n}?","Coffee and maize grow in village {n}."' for n in range(rows)]
    lines[10] = '"What is the capital?",""'
    lines[20] = '"","An answer to nothing."'
    lines[31] = lines[32] = lines[30]
    lines[40] = '"an open quote"x,yes'
    return "\n".join(lines) + "\n"


@pytest.fixture
def table(studio: Studio) -> Iterator[Path]:
    """A messy dataset that nothing was made of yet."""
    path = studio.home.datasets / "villages.csv"
    path.write_text(messy(), encoding="utf-8")
    yield path
    actions.delete_dataset(studio.home, path.name)


def fix(page: Page, code: str) -> None:
    """Press the first button of a problem and wait until it is gone."""
    page.locator(f'.problem[data-code="{code}"] [data-fix]').first.click()
    expect(page.locator(f'.problem[data-code="{code}"]')).to_have_count(0)
    expect(page.locator("#result .notice.ok")).to_be_visible()


def test_from_a_messy_table_to_a_started_run(studio: Studio, open_page: Open) -> None:
    """Upload, look at it, four presses, train: under two minutes, and the file stays as it was."""
    began = time.monotonic()
    page = open_page(f"{studio.address}/datasets")
    content = messy().encode()
    page.locator("#files").set_input_files([{"name": "market.csv", "mimeType": "text/csv", "buffer": content}])
    page.get_by_role("link", name="Look at it").click()
    expect(page.locator(".problem.bad")).to_have_count(2)
    expect(page.locator("#train")).to_be_hidden()
    for code in ("empty_answer", "bad_csv", "empty_prompt", "duplicate"):
        fix(page, code)
    expect(page.locator("#report")).to_contain_text("No problems found")
    page.locator("#train").click()
    expect(page.locator('input[name="dataset"][value="market.csv"]')).to_be_checked()
    page.locator("#advanced > summary").click()
    page.locator("#f-max_steps").fill("2")
    page.locator("#start").click()
    expect(page.locator("#run")).to_contain_text("market", timeout=PATIENCE)
    assert time.monotonic() - began < 120
    assert (studio.home.datasets / "market.csv").read_bytes() == content
    [folder] = [path for path in studio.home.runs.iterdir() if not path.name.startswith(".")]
    part = json.loads((folder / "manifest.json").read_text())["datasets"][0]
    assert (part["name"], part["rows"]) == ("market.csv", 55)


def test_a_remedy_says_what_it_did_and_leads_back(studio: Studio, table: Path, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/datasets/villages.csv")
    problem = page.locator('.problem[data-code="duplicate"]')
    expect(problem).to_contain_text("Rows that will be removed: 2")
    fix(page, "duplicate")
    expect(page.locator("#result")).to_contain_text("Rows removed: 2")
    expect(page.locator("#result")).to_be_focused()
    expect(page.locator(".step")).to_have_count(2)
    page.locator("#result").get_by_role("button", name="Look at what changed").click()
    expect(page.locator(".change.removed")).to_have_count(2)
    expect(page.locator(".change").first).to_contain_text("Row 31")
    assert not serious(page, axe)
    page.locator("#result").get_by_role("button", name="Undo").click()
    expect(page.locator('.problem[data-code="duplicate"]')).to_have_count(1)
    expect(page.locator('.step[data-number="0"]')).to_have_class(re.compile("current"))
    page.locator('.step[data-number="1"]').get_by_role("button", name="Use this version").click()
    expect(page.locator('.problem[data-code="duplicate"]')).to_have_count(0)


def test_rows_are_found_by_problem_and_by_words(studio: Studio, table: Path, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets/villages.csv")
    page.locator('.problem[data-code="duplicate"]').get_by_role("button", name="Show all 2").click()
    expect(page.locator(".data-row")).to_have_count(2)
    expect(page.locator("#row-31")).to_be_visible()
    page.locator("#problem").select_option("")
    page.locator("#search").fill("village 5")
    expect(page.locator("#rows")).to_contain_text("Rows 1 to 11 of 11")
    page.locator("#search").fill("the capital")
    page.get_by_role("button", name="Tokens").click()
    expect(page.locator("#row-10")).to_contain_text("the answer is empty")
    page.get_by_role("button", name="Text", exact=True).click()
    page.locator("#search").fill("village 7")
    expect(page.locator("#row-8 .as-text")).to_contain_text("Coffee and maize grow in village 7.")
    page.locator("#search").fill("nowhere at all")
    expect(page.locator("#rows")).to_contain_text("No row fits what you look for.")


def test_rows_are_changed_added_and_removed_by_hand(studio: Studio, table: Path, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/datasets/villages.csv")
    page.get_by_role("button", name="Edit row 10", exact=True).click()
    answer = page.locator("#row-10 textarea").nth(1)
    page.locator("#row-10").get_by_role("button", name="Save").click()
    expect(page.locator("#row-10")).to_contain_text("the answer is empty")
    answer.fill("Dili is the capital.")
    assert not serious(page, axe)
    answer.press("Control+Enter")
    expect(page.locator("#row-10 .turn.assistant")).to_contain_text("Dili is the capital.")
    expect(page.locator("#row-10")).to_be_focused()
    expect(page.locator('.problem[data-code="empty_answer"]')).to_have_count(0)
    page.get_by_role("button", name="Add a row").click()
    page.locator("#new-row textarea").nth(0).fill("Who sells the coffee?")
    page.locator("#new-row textarea").nth(1).fill("The cooperative.")
    page.locator("#new-row").get_by_role("button", name="Add the row").click()
    expect(page.locator("#result")).to_contain_text("Rows now: 61")
    page.get_by_label("Choose row 1", exact=True).check()
    page.get_by_label("Choose row 2", exact=True).check()
    page.get_by_role("button", name="Remove the chosen rows").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator("#result")).to_contain_text("Rows now: 59")
    expect(page.locator("#row-1")).to_contain_text("village 2")


def test_lengths_against_a_context_length(studio: Studio, table: Path, open_page: Open) -> None:
    lines = messy().splitlines()
    lines[50] = '"What else grows?","' + "Bananas, beans, maize and rice grow by the river. " * 8 + '"'
    table.write_text("\n".join(lines))
    *_, usual, _ = sorted(actions.dataset_lengths(studio.home, table.name))
    page = open_page(f"{studio.address}/datasets/villages.csv")
    expect(page.locator(".bars rect").first).to_be_visible()
    expect(page.locator("#lengths")).to_contain_text("All fit")
    page.locator("#length").fill(str(usual + 8))
    page.locator("#length").press("Tab")
    expect(page.locator("#lengths")).to_contain_text("1 row is longer than the context length")
    fix(page, "too_long")
    expect(page.locator("#lengths")).to_contain_text("All fit")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    assert download.value.suggested_filename == "villages.jsonl"


def test_a_file_that_changed_meanwhile_can_be_read_again(studio: Studio, table: Path, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets/villages.csv")
    fix(page, "duplicate")
    table.write_text(messy(70), encoding="utf-8")
    page.reload()
    expect(page.locator("#history")).to_contain_text("has changed since it was read")
    page.get_by_role("button", name="Start again from the file").click()
    expect(page.locator("#rows")).to_contain_text("of 70")
    expect(page.locator("#history")).not_to_contain_text("has changed since it was read")


def test_columns_nobody_knows_are_shown_on_ones_own_rows(studio: Studio, open_page: Open, axe: str) -> None:
    table = "nr,soru,javob\n" + "".join(f"{n},Nima gap bugun {n}?,Yaxshi rahmat {n} va sizda.\n" for n in range(60))
    (studio.home.datasets / "words.csv").write_text(table, encoding="utf-8")
    page = open_page(f"{studio.address}/datasets/words.csv")
    expect(page.locator("#train")).to_be_hidden()
    expect(page.locator("#column-prompt")).to_have_value("soru")
    expect(page.locator("#columns .turn.user p").first).to_have_text("Nima gap bugun 0?")
    page.locator("#column-answer").select_option("")
    expect(page.locator("#columns table")).to_contain_text("Yaxshi")
    expect(page.get_by_role("button", name="Use these columns")).to_be_disabled()
    page.locator("#column-answer").select_option("javob")
    expect(page.locator("#columns .turn.assistant p").first).to_have_text("Yaxshi rahmat 0 va sizda.")
    assert not serious(page, axe)
    page.get_by_role("button", name="Use these columns").click()
    expect(page.locator("#train")).to_be_visible()
    expect(page.locator("#rows")).to_contain_text("Rows 1 to 20 of 60")
    page.reload()
    expect(page.locator("#columns")).to_contain_text("This is remembered for this file.")


def test_pairs_typed_and_pasted_become_a_dataset(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/datasets")
    page.get_by_role("link", name="Write your own").click()
    page.get_by_label("Question", exact=True).fill("What is a tais?")
    page.get_by_label("Answer", exact=True).fill("A woven cloth.")
    page.get_by_role("button", name="Add this pair").click()
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    expect(page.locator("#preview")).to_contain_text("1 row")
    pasted = page.locator("#text").input_value() + "\nPergunta: Saida mak uma lulik?\nResposta: Uma sagradu.\n"
    page.locator("#text").fill(pasted)
    expect(page.locator("#preview")).to_contain_text("2 rows")
    expect(page.locator("#preview .turn.assistant p").nth(1)).to_have_text("Uma sagradu.")
    assert not serious(page, axe)
    page.get_by_label("Name of the file").fill("my words")
    page.get_by_role("button", name="Save as a dataset").click()
    expect(page).to_have_url(re.compile(r"/datasets/my%20words\.txt$"))
    expect(page.locator("#row-2")).to_contain_text("Uma sagradu.")


def test_a_corrected_answer_of_the_chat_becomes_a_row(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/chat")
    page.locator("#prompt").fill("What is three plus three?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Make this a row").click(timeout=PATIENCE)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Dataset").select_option("sums.json")
    dialog.get_by_label("Answer").fill("It is six.")
    assert not serious(page, axe)
    dialog.get_by_role("button", name="Add the row").click()
    expect(page.locator(".toast")).to_contain_text("sums.json")
    page.goto(f"{studio.address}/datasets/sums.json?offset=40")
    expect(page.locator("#row-41")).to_contain_text("It is six.")


def test_a_big_dataset_stays_light_and_fluid(studio: Studio, open_page: Open) -> None:
    said = (
        {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
        for n in range(30_000)
    )
    (studio.home.datasets / "big.jsonl").write_text("\n".join(json.dumps(row) for row in said))
    page = open_page(f"{studio.address}/datasets/big.jsonl?offset=29980")
    expect(page.locator("#row-30000")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("link", name="Earlier rows").click()
    expect(page.locator("#row-29961")).to_be_visible()
    expect(page.locator("#totals-title")).to_be_visible(timeout=PATIENCE)  # the server is done looking through it
    expect(page.locator("#lengths-words")).to_be_visible(timeout=PATIENCE)
    assert_light(page, studio.address, "/datasets/sums.json")
    assert_light(page, studio.address, "/write")


def test_a_preference_is_corrected_and_the_hub_says_when_it_is_away(studio: Studio, open_page: Open, axe: str) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No idea."} for n in range(60)]
    path = studio.home.datasets / "better.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = open_page(f"{studio.address}/datasets/better.jsonl")
    page.locator("[data-edit='2']").click()
    form = page.locator(".row-form")
    expect(form.get_by_role("group")).to_have_count(3)
    assert serious(page, axe) == []
    form.get_by_role("group", name="Rejected answer").locator("textarea").fill("A letter of the alphabet.")
    form.get_by_role("button", name="Save").click()
    expect(page.locator("#row-2")).to_contain_text("A letter of the alphabet.")
    expect(page.locator("#history")).to_contain_text("Changed by hand")
    page.goto(f"{studio.address}/datasets")
    page.locator("#hub-id").fill("not a name")
    page.locator("#hub-id").press("Enter")
    expect(page.locator("#uploads-list")).to_contain_text("bad_name")
    expect(page.locator("#hub-id")).to_have_value("not a name")
    assert serious(page, axe) == []
    actions.delete_dataset(studio.home, path.name)
