"""Following a run in the terminal: a progress bar for a person, plain lines for a file, events for a program."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from afina import actions
from afina.cli.shared import Out, duration, number, size
from afina.core.errors import AfinaError
from afina.core.events import ENDED
from afina.core.messages import N_, Message, say
from afina.core.paths import Home
from afina.registry.records import RunInfo
from afina.runs.early import Early
from afina.runs.supervisor import Supervisor

if TYPE_CHECKING:
    from rich.progress import Progress

LOOK_EVERY = 0.2
LINE_EVERY = 2.0
PHASES: dict[str, str] = {
    "queued": N_("Waiting"),
    "starting": N_("Starting"),
    "loading_model": N_("Loading the model"),
    "reading_data": N_("Reading the data"),
    "sampling": N_("Asking the sample questions"),
    "training": N_("Training"),
    "evaluating": N_("Validating"),
    "saving": N_("Saving"),
}


def follow(home: Home, run: RunInfo, out: Out, offset: int = 0, early: Early | None = None) -> int:
    """Look after the queue and show the run until it has ended; returns the exit code.

    Ctrl-C asks the run to stop and keep its last weights; a second one leaves it to itself. early: what may already wait to be its worker.
    """
    supervisor = Supervisor(home) if early is None else Supervisor(home, start=early.start)
    stopping = False
    with _view(out) as view:
        view.begin(run)
        while True:
            try:
                if supervisor.tick() and early is not None:
                    early.end()  # started now, or somebody else's turn
                events, offset = actions.run_events(home, run.id, offset)
                for event in events:
                    view.show(event)
                run = actions.get_run(home, run.id)
                view.waiting(run)
                if run.status in ENDED and not events:
                    break
                time.sleep(LOOK_EVERY)
            except KeyboardInterrupt:
                if stopping:
                    view.tell(
                        say(N_("The run stops by itself; “afina runs show {run}” tells how it ended."), run=run.id)
                    )
                    return 1
                stopping = True
                view.tell(
                    say(N_("Stopping after this step and keeping what was learned. Ctrl-C again leaves at once."))
                )
                _stop(home, run)
    _let_it_go(supervisor, home, run)
    return _result(run, out)


def _stop(home: Home, run: RunInfo) -> None:
    try:
        actions.stop_run(home, run.id, "last")
    except AfinaError as error:
        if error.code != "run_ended":
            raise


def _let_it_go(supervisor: Supervisor, home: Home, run: RunInfo) -> None:
    """Wait until the worker's process is gone, so that the next command finds everything settled."""
    until = time.monotonic() + 10
    while time.monotonic() < until and not supervisor.settled(run.id):
        time.sleep(0.05)


def _result(run: RunInfo, out: Out) -> int:
    """Say how the run ended; 0 when there is a result."""
    done = run.status == "succeeded" or (run.status == "stopped" and run.output is not None)
    if out.as_json:
        result: dict[str, Any] = {
            "run": run.id,
            "status": run.status,
            "train_loss": run.train_loss,
            "validation_loss": run.validation_loss,
            "output": run.output,
        }
        if run.error is not None:
            result["error"] = run.error.in_words(out.say).model_dump()
        out.json(result)
        return 0 if done else 1
    if run.error is not None:
        error = run.error.in_words(out.say)
        out.note(f"{error.message} {error.remedy or ''}".strip())
        if run.resumable:
            out.note(say(N_("Go on with: afina runs resume {run}"), run=run.id))
        return 1
    losses = [
        f"{out.text(label)} {number(loss)}"
        for label, loss in ((N_("training loss"), run.train_loss), (N_("validation loss"), run.validation_loss))
        if loss is not None
    ]
    took = duration(run.seconds)
    head = (
        say(N_("Done in {time}."), time=took)
        if run.status == "succeeded"
        else say(N_("Stopped after {time}."), time=took)
    )
    out.line(f"{out.say(head)} {', '.join(losses)}".rstrip())
    if run.output:
        out.line(say(N_("The result is in {path}"), path=run.output))
        out.line(say(N_("Talk with it: afina chat {run}"), run=run.id))
    return 0 if done else 1


def _view(out: Out) -> AbstractContextManager[View]:
    if out.as_json:
        return nullcontext(View(out))
    return Bar(out) if out.is_terminal else nullcontext(Lines(out))


class View:
    """Shows events as JSON lines; the base of the other two."""

    def __init__(self, out: Out) -> None:
        self.out = out

    def begin(self, run: RunInfo) -> None:
        """The run was put into the queue."""

    def show(self, event: dict[str, Any]) -> None:
        """One event."""
        self.out.json(event)

    def waiting(self, run: RunInfo) -> None:
        """The run as it stands, many times a second."""

    def tell(self, message: Message) -> None:
        """A sentence in between."""
        self.out.note(message)


class Lines(View):
    """A line every two seconds, and one for everything that is no step."""

    def __init__(self, out: Out) -> None:
        super().__init__(out)
        self._last = 0.0
        self._place: int | None = None

    def begin(self, run: RunInfo) -> None:
        """The run was put into the queue."""
        self.out.line(say(N_("Run {name} ({run})"), name=run.name, run=run.id))

    def show(self, event: dict[str, Any]) -> None:
        """One event, when it is worth a line."""
        if event["type"] == "step":
            now = time.monotonic()
            if now - self._last >= LINE_EVERY or event["step"] in (1, event["total_steps"]):
                self._last = now
                self.out.line(_step(self.out, event))
            return
        for line in describe(event, self.out):
            self.out.line(line)

    def waiting(self, run: RunInfo) -> None:
        """Say once at which place the run waits."""
        if run.queue_position is not None and run.queue_position != self._place:
            self._place = run.queue_position
            self.out.line(say(N_("Waiting: place {place} in the queue."), place=run.queue_position))


class Bar(Lines, AbstractContextManager["Bar"]):
    """A progress bar with loss, speed and time left; everything else scrolls above it."""

    def __init__(self, out: Out) -> None:
        super().__init__(out)
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}", style="dim"),
        )
        self._task = self._progress.add_task(self.out.text(PHASES["queued"]), total=1, facts="", visible=False)
        self._validation: float | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """One event: into the bar, or as a line above it."""
        if event["type"] == "step":
            facts = [f"{self.out.text(N_('loss'))} {number(event['loss'])}"]
            if self._validation is not None:
                facts.append(f"{self.out.text(N_('validation'))} {number(self._validation)}")
            facts += [f"{event['tokens_per_second']:.0f} tok/s", duration(event["seconds_left"]) or ""]
            self._update(
                PHASES["training"],
                total=event["total_steps"],
                completed=event["step"],
                facts="  ".join(facts),
                visible=True,
            )
        elif event["type"] == "phase":
            self._update(PHASES.get(event["name"], event["name"]), visible=True)
        else:
            if event["type"] == "eval":
                self._validation = event["loss"]
            for line in describe(event, self.out):
                self._progress.console.print(line, markup=False, highlight=False)

    def _update(self, description: str, **values: Any) -> None:
        self._progress.update(self._task, description=self.out.text(description), **values)

    def tell(self, message: Message) -> None:
        """A sentence above the bar."""
        self._progress.console.print(self.out.say(message), markup=False)


def _step(out: Out, event: dict[str, Any]) -> str:
    facts = say(
        N_("Step {step} of {total}: loss {loss}, {speed} tokens a second, {left} left"),
        step=event["step"],
        total=event["total_steps"],
        loss=number(event["loss"]) or "–",
        speed=round(event["tokens_per_second"]),
        left=duration(event["seconds_left"]),
    )
    return out.say(facts)


def describe(event: dict[str, Any], out: Out) -> list[str]:
    """The lines that say what an event other than a step means; [] for those that need no line."""
    kind = event["type"]
    if kind == "phase":
        detail = event.get("detail")
        return [out.text(PHASES.get(event["name"], event["name"])) + (f": {_words(detail, out)}" if detail else "")]
    if kind == "preflight":
        plan = say(
            N_("{rows} rows to learn from, {validation} to test with, {tokens} tokens, {steps} steps"),
            rows=event["rows"],
            validation=event["validation_rows"],
            tokens=event["tokens"],
            steps=event["total_steps"],
        )
        more = [measured(event)] if event.get("measured") else []
        if saved := round(100 * (event.get("shared_prefixes") or 0)):
            more.append(say(N_("Shared prefixes: {share} % fewer tokens to compute."), share=saved))
        return [out.say(each) for each in (plan, *more)]
    if kind == "eval":
        best = out.text(N_("the lowest so far")) if event["best"] else ""
        told = say(N_("Step {step}: validation loss {loss}"), step=event["step"], loss=number(event["loss"]) or "–")
        return [f"{out.say(told)}{f' ({best})' if best else ''}"]
    if kind == "sample" and event["when"] != "during":
        return [f"  {answer['prompt']}\n    {' '.join(answer['answer'].split())[:300]}" for answer in event["answers"]]
    if kind in ("advice", "retry", "warning"):
        return [_words(event["message"], out)]
    return []


def measured(event: dict[str, Any]) -> Message:
    """What computing the longest rows has shown: memory, seconds a step, the whole time, tokens cut."""
    values = {
        "memory": size(event["memory"]) or "–",
        "step": number(event.get("step_seconds"), 1) or "–",
        "time": duration(event["seconds"]) or "–",
    }
    if event["cut_tokens"]:
        text = N_("Measured: {memory} of memory, {step} s a step, about {time} in all; {cut} tokens are cut off.")
        return say(text, **values, cut=event["cut_tokens"])
    return say(N_("Measured: {memory} of memory, {step} s a step, about {time} in all."), **values)


def _words(message: Any, out: Out) -> str:
    if isinstance(message, dict) and "template" in message:
        return out.say(Message(message["template"], message.get("values") or {}))
    return str(message)
