"""Names stay inside their folder, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afina.core.errors import AfinaError
from afina.core.paths import Home, confined, find_home


@pytest.mark.parametrize("name", ["a.txt", "tetun.jsonl", "my data (1).csv", "ñ é.json", "a..b"])
def test_ordinary_names_are_allowed(home: Home, name: str) -> None:
    assert confined(home.datasets, name) == home.datasets / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "C:x",
        "con",
        "NUL.txt",
        "a\0b",
        "a\nb",
        "x" * 201,
        " a",
        "a.",
        "\ud800",
    ],
)
def test_names_that_could_lead_out_are_refused(home: Home, name: str) -> None:
    with pytest.raises(AfinaError) as caught:
        confined(home.datasets, name)
    assert caught.value.code == "bad_name"


def test_a_link_that_leads_out_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (home.datasets / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(AfinaError):
        confined(home.datasets, "link.txt")


@given(st.text())
def test_no_text_leads_out(name: str) -> None:
    folder = Path("/srv/afina/training/datasets")
    try:
        path = confined(folder, name)
    except AfinaError:
        return
    assert path.parent == folder
    assert path.name == name


def test_home_is_the_flag_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_HOME", str(tmp_path / "environment"))
    assert find_home(tmp_path / "flag").root == tmp_path / "flag"
    assert find_home().root == tmp_path / "environment"
    monkeypatch.delenv("AFINA_HOME")
    assert find_home().root == Path.home() / "afina"
