import pytest
from hypothesis import given
from hypothesis import strategies as st

from afina.i18n import LANGUAGES, from_environment, negotiate


@pytest.mark.parametrize(
    ("cookie", "header", "expected"),
    [
        ("tet", "en", "tet"),
        ("xx", "pt", "pt"),
        (None, None, "en"),
        (None, "tdt", "tet"),
        (None, "tet-TL,pt;q=0.8", "tet"),
        (None, "pt-BR,pt;q=0.9,en;q=0.8", "pt"),
        (None, "en-US,en;q=0.5,tet;q=0.9", "en"),
        (None, "fr,id;q=0.3,en;q=0.1", "id"),
        (None, "ms-MY", "id"),
        (None, "*", "en"),
        (None, "tet;q=0", "en"),
        (None, "tet;q=abc,pt;q=0.1", "pt"),
    ],
)
def test_choice(cookie: str | None, header: str | None, expected: str) -> None:
    assert negotiate(cookie, header) == expected


@given(st.text(), st.text())
def test_any_header_gives_a_language(cookie: str, header: str) -> None:
    assert negotiate(cookie, header) in LANGUAGES


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "pt_PT.UTF-8"}, "pt"),
        ({"LANG": "pt_PT.UTF-8", "LC_ALL": "id_ID"}, "id"),
        ({"LANG": "pt_PT.UTF-8", "AFINA_LANGUAGE": "tet"}, "tet"),
        ({"LANG": "tet_TL"}, "tet"),
    ],
)
def test_terminal(environment: dict[str, str], expected: str) -> None:
    assert from_environment(environment) == expected
