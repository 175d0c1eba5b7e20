"""Adding a model goes on in a process of its own, so that neither a page nor a closed terminal interrupts it.

For each one `.state/adding/<name>.json` says who works on it, and `<name>.jsonl` how far it has come: lines
`{"progress": 0…1, "message": …}` and at the end `{"done": true}` or the one error shape.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psutil

from afina.core.compute import compute_environment
from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, write_json
from afina.core.hub import is_hub
from afina.core.locks import locked
from afina.core.messages import N_, Message, say
from afina.core.paths import Home, confined, local_path
from afina.registry.models import STARTER, STARTER_ALIAS, describe
from afina.registry.records import Explanation, ModelInfo
from afina.runs import hub


def add(
    home: Home, source: str, name: str | None = None, on_progress: Callable[[float, Message], None] | None = None
) -> ModelInfo:
    """Start adding `source` under `name`, or join in when that is already going on. See `actions.add_model`."""
    source, name = _what(home, source.strip(), name)
    if is_hub(source) and _ready(home, name) is None and not _working(home, name):
        source = str(hub.look(hub.Reference.parse(source)).reference)
    with locked(home.state / "adding.lock"):
        ready = _ready(home, name)
        if ready is not None:
            if source == STARTER_ALIAS:
                return ready
            raise _exists(name)
        if not _working(home, name):
            _start(home, source, name)
    return _follow(home, name, on_progress) if on_progress else _info(home, name)


def list_adding(home: Home) -> list[ModelInfo]:
    """What is being added, and what could not be added since (`broken`, with the reason), oldest first."""
    names = [path.stem for path in sorted(_folder(home).glob("*.json"), key=lambda path: path.stat().st_mtime)]
    found = []
    for name in names:
        info = _info(home, name)
        if info.status == "ready":
            forget(home, name)
        else:
            found.append(info)
    return found


def forget(home: Home, name: str) -> None:
    """Take away what is remembered of an attempt."""
    for path in (_record(home, name), _lines(home, name)):
        path.unlink(missing_ok=True)


def cancel(home: Home, name: str) -> None:
    """End the process that adds `name`, and everything it started."""
    process = _process(home, name)
    if process is None:
        return
    with suppress(psutil.NoSuchProcess):
        for member in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(10)


def _folder(home: Home) -> Path:
    return home.state / "adding"


def _record(home: Home, name: str) -> Path:
    return _folder(home) / f"{name}.json"


def _lines(home: Home, name: str) -> Path:
    return _folder(home) / f"{name}.jsonl"


def _what(home: Home, source: str, name: str | None) -> tuple[str, str]:
    """The source as an absolute path, `hub:…` or `starter`, and the name of the model; raises AfinaError."""
    if source in (STARTER_ALIAS, STARTER):
        return STARTER_ALIAS, STARTER
    if is_hub(source):
        return source, _called(home, name, hub.Reference.parse(source).name)
    path = local_path(source)
    if not source or not path.exists():
        raise AfinaError(
            Problem(
                "source_not_found",
                say(N_("There is no folder or file “{path}”."), path=source),
                say(N_("Give the path of a model's folder or of a GGUF file, hub:owner/name, or the word starter.")),
                "source",
                source,
            )
        )
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise AfinaError(
            Problem(
                "source_unknown",
                say(N_("“{path}” is neither a model's folder nor a GGUF file."), path=path.name),
                say(N_("Give the path of a model's folder or of a GGUF file, hub:owner/name, or the word starter.")),
                "source",
                source,
            )
        )
    return str(path.absolute()), _called(home, name, path.stem if path.is_file() else path.absolute().name)


def _called(home: Home, name: str | None, otherwise: str) -> str:
    """The name that a person has given, else `otherwise`; raises AfinaError."""
    chosen = name.strip() if name and name.strip() else otherwise
    if chosen == STARTER_ALIAS:
        raise _exists(chosen)
    confined(home.models, chosen)
    return chosen


def _ready(home: Home, name: str) -> ModelInfo | None:
    folder = home.models / name
    info = describe(folder) if folder.is_dir() else None
    return info if info is not None and info.status == "ready" else None


def _exists(name: str) -> AfinaError:
    return AfinaError(
        Problem(
            "model_exists",
            say(N_("There is already a model “{model}”."), model=name),
            say(N_("Give the new one another name.")),
            "name",
            name,
        ),
        kind="conflict",
    )


def _start(home: Home, source: str, name: str) -> None:
    _folder(home).mkdir(parents=True, exist_ok=True)
    forget(home, name)
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with _lines(home, name).open("ab") as lines, (_folder(home) / "console.log").open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "afina.runs.adder", str(home.root), source, name],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=console,
            env=compute_environment(network=is_hub(source)),
            **options,
        )
    _children[process.pid] = process
    created = psutil.Process(process.pid).create_time()
    write_json(_record(home, name), {"pid": process.pid, "started": created, "source": source, "time": time.time()})


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes this one started, kept so that they are reaped when they end."""


def _process(home: Home, name: str) -> psutil.Process | None:
    try:
        record = read_json(_record(home, name))
        child = _children.get(record["pid"])
        if child is not None and child.poll() is not None:
            del _children[record["pid"]]
            return None
        process = psutil.Process(record["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - record["started"]) < 2
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def _working(home: Home, name: str) -> bool:
    return _process(home, name) is not None


def _said(home: Home, name: str) -> list[dict[str, Any]]:
    """The whole lines written so far."""
    try:
        data = _lines(home, name).read_bytes()
    except OSError:
        return []
    said = []
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(line)
            if isinstance(value, dict):
                said.append(value)
    return said


def _info(home: Home, name: str) -> ModelInfo:
    """The record of a model that is being added."""
    working = _working(home, name)
    said = _said(home, name)
    done = _ready(home, name)
    if done is not None and not working:
        return done
    try:
        record = read_json(_record(home, name))
    except (OSError, ValueError):
        record = {}
    progress = next((line["progress"] for line in reversed(said) if "progress" in line), 0.0)
    problem = None if working else _problem(said)
    return ModelInfo(
        id=name,
        name=name,
        aliases=[STARTER_ALIAS] if name == STARTER else [],
        kind="base",
        source=record.get("source"),
        created=float(record.get("time", time.time())),
        status="adding" if working else "broken",
        problem=problem,
        progress=progress if working else None,
    )


def _problem(said: list[dict[str, Any]]) -> Explanation:
    problem = _error(said).problems[0]
    return Explanation.of(problem.code, problem.message, problem.remedy)


def _error(said: list[dict[str, Any]]) -> AfinaError:
    """The error that ended the process, or what its silence means."""
    for line in reversed(said):
        told = line.get("error")
        if told and told.get("problems"):
            problems = [
                Problem(
                    found["code"],
                    _message(found["message"]) or say("{code}", code=found["code"]),
                    _message(found.get("remedy")),
                    found.get("field"),
                    found.get("value"),
                )
                for found in told["problems"]
            ]
            return AfinaError(problems, kind=told.get("kind", "failed"))
    return AfinaError(
        Problem(
            "adding_interrupted",
            say(N_("Adding the model was interrupted.")),
            say(N_("Add it again; what was downloaded is kept.")),
        ),
        kind="failed",
    )


def _message(told: Any) -> Message | None:
    """A sentence from a child: with its template, to be translated, or finished."""
    if isinstance(told, dict) and "template" in told:
        return Message(str(told["template"]), dict(told.get("values") or {}))
    return say("{text}", text=str(told)) if told else None


def _follow(home: Home, name: str, on_progress: Callable[[float, Message], None]) -> ModelInfo:
    """Tell how it goes until it has ended; raises AfinaError when it failed. An interruption ends the work too."""
    told = 0
    try:
        while True:
            working = _working(home, name)
            said = _said(home, name)
            for line in said[told:]:
                if "progress" in line:
                    on_progress(float(line["progress"]), _message(line.get("phase") or line.get("message")) or say(""))
            told = len(said)
            if not working:
                break
            time.sleep(0.1)
    except KeyboardInterrupt:
        cancel(home, name)
        forget(home, name)
        raise
    ready = _ready(home, name)
    if ready is not None:
        forget(home, name)
        return ready
    raise _error(said)
