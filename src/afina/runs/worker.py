"""The child that trains: `python -m afina.runs.worker RUN_DIR`, or `--early` (`early.py`). Started by name, never imported.

Reads `spec.json` and `manifest.json`, opens the frozen datasets, calls the engine's `fit`, appends its events to the log and
prints what is happening in plain lines. Exit status: 0 finished or stopped, 1 failed (a `failed` event is in the log),
75 another run computes.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from afina.core import events, quantization
from afina.core.compute import collector_at_rest
from afina.core.errors import AfinaError
from afina.core.files import read_json
from afina.core.messages import N_, say
from afina.core.parsing import parse_spec
from afina.runs.early import awaited
from afina.runs.launch import BUSY, EARLY, claim, home_of
from afina.runs.log import EventLog
from afina.runs.relief import memory_limit


def main(arguments: list[str] | None = None) -> int:
    """Train the run in the folder given; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.stderr.write("python -m afina.runs.worker RUN_DIR\n")
        return 2
    if given[0] == EARLY:
        with suppress(ImportError, OSError):  # what fails now fails again when it can be said
            _engine()
        told = awaited()
        if told is None:
            return 0
    else:
        told = Path(given[0])
    folder = told.absolute()
    try:
        with claim(folder):
            return _Worker(folder).run()
    except AfinaError as error:
        sys.stderr.write(f"{error}\n")
        return BUSY if error.code == "busy" else 1


def _engine() -> Callable[[Any], Iterator[events.Event]]:
    """What trains. Importing it takes a second or two."""
    with collector_at_rest():
        from afina.engine.loop import fit

    return fit


class _Worker:
    """One run: where it says what happens, and how it is asked to stop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = EventLog(folder)
        self._signalled = False
        self._step: int | None = None

    def run(self) -> int:
        """Train to the end; every failure that has a name becomes a `failed` event."""
        signal.signal(signal.SIGTERM, self._on_signal)
        self._say(events.Phase("starting"))
        try:
            for event in self._events():
                self._say(event)
        except AfinaError as error:
            problem = error.problems[0]
            return self._failed(problem.code, problem.message, problem.remedy)
        except MemoryError:
            return self._failed(*_out_of_memory())
        except OSError as error:
            return self._failed(*_system(error))
        except RuntimeError as error:
            from afina.engine.device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return self._failed(*_out_of_memory())
        return 0

    def _events(self) -> Iterator[events.Event]:
        return _engine()(self._job())

    def _job(self) -> Any:
        """The job that spec and manifest describe, the examples in their frozen copies."""
        from afina.data.split import counts, sides
        from afina.data.store import Rows
        from afina.engine import lean
        from afina.engine.device import choose_device
        from afina.engine.loop import Job
        from afina.engine.tokens import Source, everything

        spec = parse_spec(read_json(self._folder / "spec.json"))
        if spec.quantization == "none":
            quantization.leave_out()
        lean.leave_out(choose_device(spec.device))
        manifest = read_json(self._folder / "manifest.json")
        home = home_of(self._folder)
        own = manifest["validation"]
        share, rows = (0.0, None) if own else (spec.validation_share, spec.validation_rows)
        given = counts(rows, [part["rows"] for part in manifest["datasets"]])
        sources = []
        for part, count in zip(manifest["datasets"], given, strict=True):
            held = partial(sides, share=share, seed=spec.seed, count=count)
            name = part["sha256"]
            sources.append(Source(Rows(home, name), float(part["weight"]), held, name))
        if own:
            sources.append(Source(Rows(home, own["sha256"]), held=everything, name=own["sha256"]))
        model = manifest["model"]
        return Job(
            spec=spec,
            model_folder=Path(model["folder"]),
            adapter_folders=[Path(path) for path in model["adapters"]],
            run_folder=self._folder,
            sources=sources,
            stop=self._asked_to_stop,
            memory_limit=memory_limit(self._folder),
            cache=home.state / "cache",
            created=datetime.fromtimestamp(manifest["created"], UTC),
            notes={"run": manifest["id"], "name": manifest["name"], "model": model["id"]},
        )

    def _asked_to_stop(self) -> Literal["last", "best"] | None:
        request = self._folder / "stop.json"
        if request.is_file():
            try:
                return "best" if read_json(request).get("keep") == "best" else "last"
            except ValueError:
                return "last"
        return "last" if self._signalled else None

    def _on_signal(self, number: int, frame: object) -> None:
        self._signalled = True

    def _say(self, event: events.Event) -> None:
        self._log.append(event)
        if isinstance(event, events.Step):
            self._step = event.step
        line = _line(event)
        if line:
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            sys.stdout.flush()

    def _failed(self, code: str, message: Any, remedy: Any) -> int:
        self._say(events.Failed(code, message, remedy, self._step))
        return 1


def _line(event: events.Event) -> str | None:
    """An event as people read it in the console."""
    match event:
        case events.Phase():
            return None if event.name == "training" else event.name.replace("_", " ")
        case events.Preflight():
            return (
                f"{event.rows} examples, {event.tokens} tokens ({event.answer_tokens} learned), {event.total_steps} steps; "
                f"{event.trainable_parameters / 1e6:.1f} of {event.parameters / 1e6:.1f} million parameters are trained, "
                f"{event.precision} on {event.device}{_measured(event)}"
                + (f"; shared prefixes: {event.shared_prefixes:.0%} fewer tokens" if event.shared_prefixes else "")
            )
        case events.Step():
            return (
                f"step {event.step}/{event.total_steps} loss {event.loss:.3f} lr {event.learning_rate:.1e} "
                f"{event.tokens_per_second:.0f} tok/s {_left(event.seconds_left)}"
            )
        case events.Eval():
            return f"validation at step {event.step}: loss {event.loss:.3f}{' (best so far)' if event.best else ''}"
        case events.Sample():
            return "\n".join(f"  {answer.prompt!r} → {answer.answer!r}" for answer in event.answers)
        case events.Checkpoint():
            return f"saved {event.path}"
        case events.Advice() | events.Retry() | events.Warn():
            return str(event.message)
        case events.Finished():
            return f"finished after {event.seconds:.0f} s: {event.output}"
        case events.Stopped():
            return f"stopped at step {event.step}, kept {event.kept}: {event.output or 'nothing'}"
        case events.Failed():
            return f"failed: {event.message} {event.remedy or ''}".rstrip()
    return None


def _measured(plan: events.Preflight) -> str:
    if not plan.measured or plan.memory is None or plan.seconds is None:
        return ""
    cut = f", {plan.cut_tokens} tokens cut" if plan.cut_tokens else ""
    return f"\nmeasured: {plan.memory / 1e9:.1f} GB, {plan.step_seconds or 0:.1f} s a step, {_left(plan.seconds)}{cut}"


def _left(seconds: float) -> str:
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


def _out_of_memory() -> tuple[str, Any, Any]:
    return (
        "out_of_memory",
        say(N_("There is not enough memory for this run.")),
        say(
            N_(
                "Use a shorter maximum length, LoRA in place of full fine-tuning, or a smaller model; close other programs."
            )
        ),
    )


def _system(error: OSError) -> tuple[str, Any, Any]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no_space", say(N_("The disk is full.")), say(N_("Free some space, then resume the run."))
    reason = say(N_("The run cannot read or write a file: {reason}"), reason=str(error))
    return (
        "file_error",
        reason,
        say(N_("Look at the disk and the permissions of the home folder, then resume the run.")),
    )


if __name__ == "__main__":
    sys.exit(main())
