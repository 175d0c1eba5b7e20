"""The Datasets pages: the list that keeps itself fresh, upload, the report, the rows, delete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open, Studio, serious

pytestmark = pytest.mark.browser

DROP = """([names, folder]) => {
  const carried = new DataTransfer();
  for (const [name, text] of Object.entries(names)) carried.items.add(new File([text], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""


def conversation(question: str, answer: str, role: str = "assistant") -> str:
    """One line of a messages dataset."""
    said = [{"role": "user", "content": question}, {"role": role, "content": answer}]
    return json.dumps({"messages": said})


@pytest.fixture(scope="module")
def flawed(studio: Studio) -> Path:
    """A dataset of 45 conversations with an unknown role in row 3, no answer in row 30 and two rows that repeat."""
    lines = [conversation(f"Where is market {n}?", f"By the river,\nnext to bridge {n}.") for n in range(1, 46)]
    lines[2] = conversation("Who sells it?", "An aunt.", "bot")
    lines[29] = conversation("And then?", "")
    lines[40] = lines[41] = lines[39]
    path = studio.home.datasets / "market questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def row(page: Page, name: str) -> object:
    return page.locator("#list tbody tr").filter(has_text=name)


def test_an_empty_folder_says_what_to_do_and_a_dropped_file_appears(studio: Studio, open_page: Open) -> None:
    kept = studio.home.datasets / "sums.json"
    content = kept.read_bytes()
    kept.unlink()
    page = open_page(f"{studio.address}/datasets")
    expect(page.locator("#list")).to_contain_text("No datasets yet")
    with page.expect_file_chooser():
        page.locator("#list [data-upload]").click()
    kept.write_bytes(content)
    expect(page.locator("#list tbody tr")).to_have_count(1)
    told = page.locator("#list tbody tr")
    expect(told).to_contain_text("Instructions and answers")
    expect(told).to_contain_text("40")
    told.get_by_role("link", name="Train with this").click()
    expect(page).to_have_url(re.compile(r"/training\?dataset=sums\.json$"))


def test_several_files_by_button_each_with_its_own_outcome(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets")
    good = "Question: Where is Dili?\nAnswer: In Timor-Leste.\n\n" * 3
    page.locator("#files").set_input_files(
        [
            {"name": "dili.txt", "mimeType": "text/plain", "buffer": good.encode()},
            {"name": "aux.txt", "mimeType": "text/plain", "buffer": b"Question: A?\nAnswer: B."},
            {"name": "photo.txt", "mimeType": "text/plain", "buffer": bytes(range(256)) * 20},
        ]
    )
    uploads = page.locator("#uploads-list li.upload")
    expect(uploads).to_have_count(3)
    expect(uploads.nth(0)).to_contain_text("3 rows")
    expect(uploads.nth(0).get_by_role("link", name="Look at it")).to_be_visible()
    expect(uploads.nth(1)).to_contain_text("bad_name")
    expect(uploads.nth(2)).to_contain_text("Save the examples as text")
    expect(page.locator("#list tbody tr").filter(has_text="dili.txt")).to_have_count(1)
    page.locator("#uploads-close").click()
    expect(page.locator("#uploads")).to_be_hidden()


def test_files_dropped_anywhere_are_uploaded(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets")
    page.evaluate(DROP, [{"dropped.jsonl": conversation("Hello?", "Good morning.")}, ""])
    expect(page.locator("#uploads-list")).to_contain_text("1 row")
    expect(page.locator("#list tbody tr").filter(has_text="dropped.jsonl")).to_have_count(1)
    assert (studio.home.datasets / "dropped.jsonl").is_file()


def test_an_upload_without_a_server_says_so(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets")
    page.route("**/api/v1/datasets", lambda route: route.abort("connectionrefused"))
    page.locator("#files").set_input_files([{"name": "a.txt", "mimeType": "text/plain", "buffer": b"Q: a\nA: b"}])
    expect(page.locator("#uploads-list")).to_contain_text("The server does not answer")


def test_the_report_comes_first_with_remedies(studio: Studio, flawed: Path, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/datasets")
    page.get_by_role("link", name=flawed.name).click()
    problems = page.locator(".problem")
    expect(problems.first).to_contain_text("unknown_role")
    expect(problems.first).to_contain_text("Rename the role")
    assert page.locator(".problem.bad").count() == 2
    expect(page.locator(".problem.warn").filter(has_text="duplicate")).to_have_count(1)
    expect(page.locator(".stats")).to_contain_text("45")
    expect(page.locator("#train")).to_be_hidden()
    assert not serious(page, axe)
    page.locator('.problem a[data-row="30"]').click()
    expect(page.locator("#row-30")).to_be_focused()
    expect(page.locator("#row-30")).to_contain_text("empty")


def test_rows_as_conversations_page_by_page(studio: Studio, flawed: Path, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets/market%20questions.jsonl")
    expect(page.locator(".data-row")).to_have_count(20)
    expect(page.locator("#row-1 .turn.assistant p")).to_have_text("By the river,\nnext to bridge 1.")
    page.get_by_role("link", name="Later rows").click()
    expect(page.locator("#rows")).to_contain_text("Rows 21 to 40 of 45")
    page.get_by_role("link", name="Later rows").click()
    expect(page.locator(".data-row")).to_have_count(5)
    expect(page.locator("#rows")).to_contain_text("Rows 41 to 45 of 45")
    page.reload()
    expect(page.locator("#row-45")).to_be_visible()
    expect(page.get_by_role("link", name="Later rows")).to_be_hidden()


def test_rows_as_tokens_with_the_mask(studio: Studio, open_page: Open, axe: str) -> None:
    page = open_page(f"{studio.address}/datasets/sums.json")
    page.get_by_role("button", name="Tokens").click()
    first = page.locator("#row-1 .pieces")
    expect(first.locator(".tok-learn").first).to_be_visible()
    assert "It is 0." in "".join(first.locator(".tok-learn").all_text_contents())
    assert "What is 0 plus 0?" in "".join(first.locator(".tok-read").all_text_contents())
    assert not serious(page, axe)
    page.reload()
    expect(page.locator("#row-1 .tok-learn").first).to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator("#row-1 .turn.user")).to_contain_text("What is 0 plus 0?")


def test_texts_of_a_dataset_are_never_markup(studio: Studio, open_page: Open) -> None:
    bait = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    (studio.home.datasets / "bait.jsonl").write_text(conversation(bait, bait), encoding="utf-8")
    page = open_page(f"{studio.address}/datasets/bait.jsonl")
    expect(page.locator("#row-1 .turn.user p")).to_have_text(bait)
    assert page.locator("#row-1 img").count() == 0


def test_delete_asks_first_and_keeps_the_keyboard(studio: Studio, open_page: Open) -> None:
    (studio.home.datasets / "old.txt").write_text("Q: a\nA: b\n", encoding="utf-8")
    page = open_page(f"{studio.address}/datasets")
    page.get_by_role("button", name="Delete old.txt").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Delete old.txt?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Delete old.txt")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#list tbody tr").filter(has_text="old.txt")).to_have_count(0)
    assert not (studio.home.datasets / "old.txt").exists()
    page.goto(f"{studio.address}/datasets/dili.txt")
    page.locator(".page-head [data-delete]").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("/datasets$"))


def test_a_dataset_that_is_not_there(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/datasets/nothing.txt")
    expect(page.locator(".error-page")).to_contain_text("There is no dataset")
