"""Opening the index: one engine a process and address, migrated before its first use.

SQLite in WAL mode inside the home, or what `AFINA_DATABASE_URL` names. Alembic is only imported when a migration is due.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session

from afina.core.errors import AfinaError, Problem
from afina.core.locks import locked
from afina.core.messages import N_, say
from afina.core.paths import Home

REVISION = "0001"
MIGRATIONS = Path(__file__).with_name("migrations")

_engines: dict[str, Engine] = {}
_guard = threading.RLock()


def address(home: Home) -> str:
    """The URL of the index: `AFINA_DATABASE_URL`, else the file in the home."""
    return os.environ.get("AFINA_DATABASE_URL") or f"sqlite:///{home.database}"


def shown_address(home: Home) -> str:
    """The same for people to see, without its password."""
    return str(make_url(address(home)).render_as_string(hide_password=True))


def open_session(home: Home, fill: Callable[[Home, Session], None]) -> Session:
    """A session on the index. `fill` is called once inside a new, empty index to read the folders into it.

    An index that is damaged is put aside as `afina.db.broken-…` and made anew. Raises AfinaError `bad_database`,
    `database_unreachable`, `database_newer`.
    """
    url = address(home)
    with _guard:
        engine = _engines.get(url)
        if engine is not None and _is_missing(engine):
            engine.dispose()
            engine = None
        if engine is None:
            engine = _engines[url] = _open(url, home, fill)
    return Session(engine, expire_on_commit=False)


def close_all() -> None:
    """Close every connection of this process (before a home is removed)."""
    with _guard:
        for engine in _engines.values():
            engine.dispose()
        _engines.clear()


def _open(url: str, home: Home, fill: Callable[[Home, Session], None]) -> Engine:
    """Make the engine, bring the tables up to date, fill them when they are new."""
    home.create()
    try:
        engine = _engine(url)
        with locked(home.state / "database.lock", timeout=60):
            try:
                _prepare(engine, home, fill)
            except DatabaseError as error:
                if isinstance(error, OperationalError) or not _put_aside(engine):
                    raise
                _prepare(engine, home, fill)
    except (ArgumentError, ImportError) as error:
        raise AfinaError(
            Problem(
                "bad_database",
                say(N_("AFINA_DATABASE_URL cannot be used: {reason}."), reason=_reason(error)),
                say(N_("Take it away to use the file in the home folder, or correct it.")),
            ),
            kind="failed",
        ) from None
    except DatabaseError as error:
        raise AfinaError(
            Problem(
                "database_unreachable",
                say(N_("The database cannot be opened: {reason}."), reason=_reason(error.orig or error)),
                say(N_("Look whether the home folder can be written to and the disk has room.")),
            ),
            kind="failed",
        ) from None
    return engine


def _engine(url: str) -> Engine:
    engine = create_engine(url, json_serializer=_dumps)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune)
    return engine


def _dumps(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=str).decode()


def _tune(connection: Any, _record: Any) -> None:
    """Readers never wait for the writer; writers wait for each other; a crash loses nothing that was committed."""
    cursor = connection.cursor()
    for setting in ("busy_timeout=15000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _prepare(engine: Engine, home: Home, fill: Callable[[Home, Session], None]) -> None:
    with engine.begin() as connection:
        revision = _revision(connection)
        if revision == REVISION:
            return
        _migrate(connection, revision)
        if revision is None:
            session = Session(connection)
            fill(home, session)
            session.flush()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(connection: Connection, revision: str | None) -> None:
    """Run the migrations that are due. Raises AfinaError `database_newer`."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise AfinaError(
            Problem(
                "database_newer",
                say(N_("The database of this home was made by a newer Afina.")),
                say(N_("Update Afina, or move the file afina.db away: it is made again from the folders.")),
            ),
            kind="failed",
        )
    command.upgrade(config, "head")


def _file(engine: Engine) -> Path | None:
    """The database's file, None when it is not a file."""
    name = make_url(engine.url).database
    return Path(name) if engine.dialect.name == "sqlite" and name and name != ":memory:" else None


def _is_missing(engine: Engine) -> bool:
    path = _file(engine)
    return path is not None and not path.exists()


def _put_aside(engine: Engine) -> bool:
    """Rename a damaged file so that a new one can take its place; False when there is no file."""
    path = _file(engine)
    engine.dispose()
    if path is None or not path.exists():
        return False
    path.rename(path.with_name(f"{path.name}.broken-{int(time.time())}"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return True


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__
