"""Opening, migrating and mending the index."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.registry import database
from afina.registry.tables import Base
from tests.runs import helpers


@pytest.fixture(autouse=True)
def _closed() -> object:
    yield
    database.close_all()


def test_the_migrations_make_exactly_the_tables_of_the_program(home: Home) -> None:
    actions.list_runs(home)
    with create_engine(f"sqlite:///{home.database}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    head = ScriptDirectory(str(database.MIGRATIONS)).get_current_head()
    assert head == database.REVISION


def test_sqlite_writes_ahead(home: Home) -> None:
    actions.list_runs(home)
    with sqlite3.connect(home.database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_many_may_open_a_new_home_at_once(home: Home) -> None:
    failures: list[BaseException] = []

    def look() -> None:
        try:
            actions.list_runs(home)
        except BaseException as error:  # noqa: BLE001 - gathered for the assertion
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_damaged_index_is_put_aside_and_made_again(home: Home) -> None:
    run = helpers.start(helpers.furnish(home), "kept")
    database.close_all()
    for path in home.root.glob("afina.db-*"):
        path.unlink()
    home.database.write_bytes(b"this is no database" * 1000)
    assert [info.id for info in actions.list_runs(home)] == [run.id]
    assert len(list(home.root.glob("afina.db.broken-*"))) == 1


def test_an_index_of_a_newer_program_is_left_alone(home: Home) -> None:
    actions.list_runs(home)
    database.close_all()
    with sqlite3.connect(home.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(AfinaError) as caught:
        actions.list_runs(home)
    assert caught.value.code == "database_newer"


def test_another_address_is_honoured(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_DATABASE_URL", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    helpers.start(helpers.furnish(home), "kept")
    assert (tmp_path / "elsewhere.db").exists()
    assert not home.database.exists()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("nonsense", "bad_database"),
        ("strange://host/db", "bad_database"),
        ("sqlite:////nowhere/at/all/x.db", "database_unreachable"),
    ],
)
def test_an_address_that_cannot_be_used_is_explained(
    home: Home, monkeypatch: pytest.MonkeyPatch, url: str, code: str
) -> None:
    monkeypatch.setenv("AFINA_DATABASE_URL", url)
    with pytest.raises(AfinaError) as caught:
        actions.list_runs(home)
    assert caught.value.code == code


def test_a_password_in_the_address_is_never_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_DATABASE_URL", "postgresql://me:secret@host/db")
    assert "secret" not in database.shown_address(home)
