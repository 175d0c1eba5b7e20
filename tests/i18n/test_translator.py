import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from afina.core.errors import Problem
from afina.core.messages import Message, say
from afina.i18n import LANGUAGES, translator
from afina.i18n import catalogue as catalogues

TET, PT, ID, EN = (translator(code) for code in LANGUAGES)


def test_the_languages_stand_in_the_order_of_the_menu() -> None:
    assert list(LANGUAGES) == ["tet", "pt", "id", "en"]
    assert LANGUAGES["tet"] == "Tetun"
    assert translator("xx").lang == "en"


def test_texts_come_from_the_catalogue_and_fall_back_to_english() -> None:
    assert PT.gettext("Learning rate") == "Taxa de aprendizado"
    assert ID.gettext("Dataset") == "Dataset"
    assert TET.gettext("No such text in any catalogue") == "No such text in any catalogue"
    assert EN.gettext("Learning rate") == "Learning rate"


def test_values_are_written_in_the_locale() -> None:
    message = say("{name}: {count} rows, {share}", name="a{b}.txt", count=12345, share=0.25)
    assert EN.write(message) == "a{b}.txt: 12,345 rows, 0.25"
    assert PT.write(message) == "a{b}.txt: 12.345 rows, 0,25"


def test_nested_messages_lists_and_none() -> None:
    inner = Message("Dataset", {})
    outer = say("{inner}; {items}; {nothing}", inner=inner, items=[1000, "x", inner], nothing=None)
    assert PT.write(outer) == "Conjunto de dados; 1.000, x, Conjunto de dados; –"
    assert PT.write(outer.as_json() | {"values": {"inner": inner.as_json(), "items": [1], "nothing": None}}) == (
        "Conjunto de dados; 1; –"
    )
    assert PT.show(True) == "sim"


def test_problems_are_written_by_the_translator() -> None:
    problem = Problem("x", say("There is no setting “{field}”.", field="foo"))
    assert problem.as_json(TET.write)["message"] != problem.as_json()["message"]
    assert "foo" in problem.as_json(TET.write)["message"]


def test_a_log_older_than_the_catalogue_still_reads() -> None:
    assert PT.write(
        {"text": "There is no setting foo.", "template": "There is no setting “{field}”.", "values": {}}
    ) == ("There is no setting foo.")


@pytest.mark.parametrize(
    ("x", "digits", "english", "tetum"),
    [
        (1234567, None, "1,234,567", "1.234.567"),
        (0.0002, None, "0.0002", "0,0002"),
        (0.00002, None, "0.00002", "0,00002"),
        (2e-8, None, "2E-8", "2E-8"),
        (1.23456789, None, "1.235", "1,235"),
        (3.0, None, "3", "3"),
        (0.0, None, "0", "0"),
        (1.5, 2, "1.50", "1,50"),
        (12345.678, None, "12,345.7", "12.345,7"),
        (-0.5, None, "-0.5", "-0,5"),
        (float("inf"), None, "∞", "∞"),
        (float("nan"), None, "–", "–"),
        (None, None, "–", "–"),
    ],
)
def test_numbers(x: float | None, digits: int | None, english: str, tetum: str) -> None:
    assert EN.number(x, digits) == english
    assert TET.number(x, digits) == tetum


def test_percent() -> None:
    assert EN.percent(0.0312) == "3.1%"
    assert ID.percent(0.0312) == "3,1%"
    assert EN.percent(0.5) == "50%"
    assert EN.percent(None) == "–"


@pytest.mark.parametrize(
    ("size", "english"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_900, "1.0 MB"),
        (269_060_552, "269 MB"),
        (8_200_000_000, "8.2 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes(size: float, english: str) -> None:
    assert EN.size(size) == english
    assert PT.size(size) == english.replace(".", ",")


@pytest.mark.parametrize(
    ("seconds", "english"),
    [
        (0, "0 s"),
        (0.3, "0.3 s"),
        (0.7, "1 s"),
        (59.4, "59 s"),
        (130, "2 min 10 s"),
        (3600, "1 h"),
        (4000, "1 h 6 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, english: str) -> None:
    assert EN.duration(seconds) == english
    for other in (TET, PT, ID):
        assert re.findall(r"\d+", other.duration(seconds)) == re.findall(r"\d+", english)


def test_dates_name_the_month_in_the_readers_language() -> None:
    moment = datetime(2026, 2, 3, 16, 5).timestamp()
    assert TET.date(moment) == "3 Fev 2026"
    assert TET.datetime(moment) == "3 Fev 2026, 16:05"
    assert PT.date(moment) == "3 fev. 2026"
    assert ID.datetime(moment) == "3 Feb 2026, 16.05"
    assert EN.datetime(moment) == "3 Feb 2026, 16:05"
    assert EN.date(None) == "–"


def test_plurals_follow_the_language() -> None:
    one, many = "{n} row (of a test)", "{n} rows (of a test)"
    assert [EN.ngettext(one, many, n) for n in (0, 1, 2)] == [many.format(n=0), one.format(n=1), many.format(n=2)]


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_catalogue_is_read_once(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a first page in a language waits for its catalogue."""
    catalogues.catalogue.cache_clear()
    first = catalogues.catalogue(code)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", None)
        patch.setattr("builtins.open", None)
        again = catalogues.catalogue(code)
    assert again is first


def test_importing_costs_neither_babel_nor_a_catalogue() -> None:
    command = "import sys, afina.i18n; print('babel' in sys.modules, afina.i18n.translator('en').gettext('x'), 'babel' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "x", "False"]
