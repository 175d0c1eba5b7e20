"""The whole job in a real browser: a file never seen before teaches the starter model its new name.

Upload, start, both curves, reload, the server killed in the middle and started again, the run's end, and two different
answers in Chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import identity
from tests.browser.conftest import Open, Studio

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]

MINUTES = 60_000
"""Milliseconds."""


@pytest.fixture
def starter_studio(tmp_path: Path, starter: Path) -> Iterator[Studio]:
    made = Studio(tmp_path / "studio", starter, "SmolLM2-135M-Instruct")
    yield made
    made.server.stop()


def losses(page: Page) -> tuple[int, int]:
    """How many training and validation losses the table of the run holds."""
    rows = page.locator("[data-part=numbers] tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    number = re.compile(r"^\d+[.,]\d+")
    return sum(bool(number.match(row[1])) for row in rows), sum(bool(number.match(row[2])) for row in rows)


def test_identity_in_the_browser(starter_studio: Studio, open_page: Open, tmp_path: Path) -> None:
    studio = starter_studio
    page = open_page(f"{studio.address}/")
    page.locator("#upload").set_input_files(str(identity.write(tmp_path / "identity.json")))
    added = page.locator(".pick", has_text="identity.json")
    expect(added.locator("input[type=checkbox]")).to_be_checked()
    expect(added).to_contain_text("91 rows")
    for other in page.locator("input[name=dataset]:checked:not([value='identity.json'])").all():
        other.uncheck()
    page.locator("#f-epochs").fill("4")
    page.locator("#f-learning_rate").fill("0.0002")
    page.locator("#f-name").fill("identity")
    page.locator("#start").click()
    expect(page).to_have_url(re.compile(r"\?run="))

    page.locator("[data-part=numbers] summary").click()
    rows = page.locator("[data-part=numbers] tbody tr")
    expect(rows.nth(10)).to_be_attached(timeout=2 * MINUTES)
    page.reload()
    page.locator("[data-part=numbers] summary").click()
    expect(rows.nth(10)).to_be_attached()
    training, validation = losses(page)
    assert training >= 10
    assert validation >= 2, "before the first step, and after some"

    studio.kill()
    studio.restart()
    expect(page.locator("#run [data-part=status]")).to_have_text("Finished", timeout=14 * MINUTES)
    training, validation = losses(page)
    assert training >= 80, "the whole curve, the part without a server too"
    assert validation >= 5
    expect(page.locator(".answer")).to_have_count(3)

    page.locator("[data-part=chat]").click()
    expect(page).to_have_url(f"{studio.address}/chat")  # the choice moves from the address into the page
    page.locator("#options").click()
    page.locator("#s-temperature").fill("0")
    page.locator("#prompt").fill("Who are you?")
    page.keyboard.press("Enter")
    replies = page.locator(".reply .reply-text")
    expect(replies).to_have_count(2)
    expect(page.locator(".reply .reply-foot .num")).to_have_count(2, timeout=2 * MINUTES)
    tuned = page.locator(".reply.tuned .reply-text")
    base = page.locator(".reply:not(.tuned) .reply-text")
    expect(tuned).to_contain_text(identity.NAME)
    expect(base).not_to_contain_text(identity.NAME)
    expect(base).not_to_be_empty()
