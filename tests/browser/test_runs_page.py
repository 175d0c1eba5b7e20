"""The Runs pages: the table, the comparison, one run, start again, delete."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open, Studio, assert_light, serious

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(studio: Studio) -> list[str]:
    """Ids of two short finished runs, "first" and "second", which differ in their rank."""
    spec = {"model": "tiny", "dataset": "sums.json", "max_steps": 4, "eval_every": 2}
    made = []
    for name, rank in (("first", 4), ("second", 8)):
        answer = httpx.post(
            f"{studio.address}/api/v1/runs", json={**spec, "name": name, "lora_rank": rank, "tags": ["sums", name]}
        )
        assert answer.status_code == 201, answer.text
        made.append(str(answer.json()["id"]))
    until = time.monotonic() + 90
    while time.monotonic() < until:
        states = {run["status"] for run in httpx.get(f"{studio.address}/api/v1/runs").json()}
        if states == {"succeeded"}:
            return made
        assert states <= {"queued", "starting", "running", "succeeded"}, states
        time.sleep(0.3)
    raise AssertionError("the runs did not finish")


def test_an_empty_table_says_what_to_do(studio: Studio, open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs")
    page.get_by_role("link", name="Go to Training").click()
    expect(page).to_have_url(re.compile("/training$"))


def test_nothing_at_the_top_is_cut_on_a_phone(studio: Studio, runs: list[str], open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs", width=390, language="tet")
    find = page.locator("#find").bounding_box()
    new = page.locator(".page-head .button").bounding_box()
    assert find
    assert new
    assert find["width"] >= 180
    assert new["width"] == find["width"] == 358, "each on a line of its own"
    shown = page.locator("#find").evaluate("""field => {
      const ink = document.createElement("canvas").getContext("2d");
      ink.font = getComputedStyle(field).font;
      return ink.measureText(field.placeholder).width < field.clientWidth - 24;
    }""")
    assert shown


def test_sort_find_and_compare(studio: Studio, runs: list[str], open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs")
    names = page.locator("#runs tbody th a")
    expect(names).to_have_text(["second", "first"])
    page.locator('#runs th[data-key="name"] button').click()
    expect(names).to_have_text(["first", "second"])
    expect(page.locator('#runs th[data-key="name"]')).to_have_attribute("aria-sort", "ascending")
    page.locator("#find").fill("second")
    expect(page.locator("#runs tbody tr:visible")).to_have_count(1)
    page.locator("#find").fill("")
    for box in page.locator(".compare").all():
        box.check()
    expect(page.locator("#comparison")).to_be_visible()
    expect(page.locator("#differences tbody th")).to_have_text(["LoRA rank", "Tags"])
    page.reload()
    expect(page.locator("#compare-legend li")).to_have_count(2)


def test_one_run_and_start_again(studio: Studio, runs: list[str], open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs/{runs[1]}")
    expect(page.locator("h1")).to_have_text("second")
    expect(page.locator("[data-part=doing]")).to_contain_text("Finished after")
    expect(page.locator(".settings dd strong").filter(has_text=re.compile("^4$"))).to_have_count(1)
    page.get_by_role("link", name="Start again").click()
    expect(page.locator("#f-lora_rank")).to_have_value("8")
    expect(page.locator("#f-max_steps")).to_have_value("4")
    expect(page.locator("#f-name")).to_have_value("")


def test_both_pages_give_the_run_the_same_losses(studio: Studio, runs: list[str], open_page: Open) -> None:
    info = httpx.get(f"{studio.address}/api/v1/runs/{runs[1]}").json()
    page = open_page(f"{studio.address}/runs/{runs[1]}")
    expect(page.locator("[data-part=train-loss]")).to_have_text(f"{info['train_loss']:.3f}")
    expect(page.locator("[data-part=validation-loss]")).to_have_text(f"{info['validation_loss']:.3f}")


@pytest.mark.parametrize("language", ["tet", "pt", "id", "en"])
def test_the_table_shows_every_column_in_each_language(
    studio: Studio, runs: list[str], open_page: Open, language: str
) -> None:
    page = open_page(f"{studio.address}/runs", language=language)
    for row in page.locator("#runs tbody tr").all():  # as long as real names are
        row.locator("th a").evaluate("link => { link.textContent = 'timor-leste-lora'; }")
        row.locator(".cell").nth(0).evaluate("cell => { cell.textContent = 'SmolLM2-135M-Instruct'; }")
        row.locator(".cell").nth(1).evaluate("cell => { cell.textContent = 'timor-leste.txt'; }")
        row.locator('[data-cell="seconds"]').evaluate("cell => { cell.textContent = '13 min 36 s'; }")
        row.locator("th .badge").evaluate_all("tags => tags.forEach((tag) => tag.remove())")
    assert page.locator(".table-wrap:has(#runs)").evaluate("wrap => wrap.scrollWidth - wrap.clientWidth") <= 0


def test_the_first_load_is_light_where_there_are_runs(studio: Studio, runs: list[str], open_page: Open) -> None:
    for path in ("/runs", f"/runs/{runs[0]}", "/training", f"/chat?model={runs[0]}&base=tiny"):
        assert_light(open_page("about:blank"), studio.address, path)


def test_nothing_serious_for_axe_where_there_are_runs(
    studio: Studio, runs: list[str], open_page: Open, axe: str
) -> None:
    for path in (f"/runs?compare={','.join(runs)}", f"/runs/{runs[1]}", "/training"):
        for theme, width in (("dark", 1280), ("light", 390)):
            page = open_page(studio.address + path, width=width, theme=theme)
            page.wait_for_load_state("networkidle")
            assert not serious(page, axe)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_delete_asks_first(studio: Studio, runs: list[str], open_page: Open) -> None:
    page = open_page(f"{studio.address}/runs/{runs[0]}")
    page.locator("#delete-run").click()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#delete-run").click()
    page.get_by_role("button", name="Delete the run").click()
    expect(page).to_have_url(re.compile("/runs$"))
    expect(page.locator("#runs tbody tr")).to_have_count(1)
    page.goto(f"{studio.address}/runs/{runs[0]}")
    expect(page.locator(".error-page")).to_be_visible()
