"""The training loop: `fit(job)` yields events from the first to the last. It reads from top to bottom.

What a step is: `batch_size × gradient_accumulation_steps` examples, whatever the layout in memory; its loss is the mean
over all their answer tokens. Everything else (tokens, attention, adapters, checkpoints) has a module of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from afina.core.errors import AfinaError, Problem
from afina.core.events import Checkpoint, Eval, Event, Finished, Phase, Retry, Sample, Step, Stopped, Warn
from afina.core.messages import N_, Message, say
from afina.engine import checkpoint, optim, output, prefixes, samples
from afina.engine import device as devices
from afina.engine.batches import Item, Row, filled, lay_end_to_end, rows_of
from afina.engine.before import Cost
from afina.engine.evaluate import validation_loss
from afina.engine.job import Job, Keep
from afina.engine.setup import Ready, prepare
from afina.engine.watch import Watch

__all__ = ["Job", "fit"]


def fit(job: Job) -> Iterator[Event]:
    """Train. The last event is Finished or Stopped; a failure is raised as AfinaError (`loss_not_finite`,
    `out_of_memory`, …), after which the newest checkpoint on disk is the last good state.

    Goes on from the newest complete checkpoint in the run folder, if there is one, exactly as if it had never stopped.
    """
    ready = yield from prepare(job)
    run = Run(ready)
    try:
        yield from run.events()
    finally:
        run.writer.close()


class Run:
    """The state of a run while it computes: what a step changes and a checkpoint saves."""

    def __init__(self, ready: Ready) -> None:
        self.ready = ready
        self.spec = ready.job.spec
        self.folder = ready.job.run_folder
        self.tokens_per_row = ready.layout.tokens_per_row
        self.checkpointing = ready.layout.checkpointing
        self.share_prefixes = ready.share_prefixes
        self.step = 0
        self.watch = Watch()
        self.started = time.monotonic()
        self.step_seconds = 0.0
        self.steps_timed = 0
        self.eval_seconds = 0.0
        self.saved_step: int | None = None
        self.writer = checkpoint.Writer(self.folder)
        self.best_when_saved: int | None = None

    def events(self) -> Iterator[Event]:
        """From the first step, or the one after the newest checkpoint, to the end."""
        self._resume()
        self.ready.network.reserve(self.tokens_per_row)
        yield from self._preflight()
        if self.step == 0:
            yield from self._sample("before")
            yield from self._evaluate()
        yield Phase("training")
        stop: Keep | None = None
        while self.step < self.ready.total_steps:
            stop = self.ready.job.stop()
            if stop:
                break
            yield from self._train_step()
            yield from self._written(wait=False)
            due = self.step % self.ready.eval_every == 0 or self.step == self.ready.total_steps
            best = False
            if due and self.ready.validation:
                best = yield from self._evaluate()
            if best or self.step % self.ready.save_every == 0 or self.step == self.ready.total_steps:
                yield from self._save()
            if self.step == self.ready.total_steps // 2 and self.step < self.ready.total_steps:
                yield from self._sample("during")
            patience = self.spec.early_stopping_patience
            if patience is not None and self.watch.waited >= patience:
                text = N_(
                    "Validation loss has not improved {times} times in a row: stopped early, the best state is kept."
                )
                yield Warn("stopped_early", say(text, times=patience))
                yield from self._finish("best")
                return
        yield from self._stopped(stop) if stop else self._finish("last")

    def _preflight(self) -> Iterator[Event]:
        """Compute the longest row once, forward and backward, and say what it took; nothing of the run changes. What an earlier run on this
        machine found of the same row is taken as it is where there is memory for it.

        The optimizer's state is made before, so that no step can fail half-way for lack of memory. Shared prefixes only make
        rows shorter, so the row is one without them.
        """
        ready = self.ready
        optim.rehearse(ready.optimizer, ready.trained)
        items = ready.train.heaviest(self.spec.examples_per_step)
        cost = self._known_cost(items)
        if cost is None:
            cost = yield from self._measured_cost(items)
            if not devices.busy(ready.device):
                ready.before.keep_cost(*self._longest_row(items), cost)
        tokens = int(ready.train.lengths[ready.order.epoch(0)].sum()) / ready.order.steps_per_epoch
        saving = ready.saving if self.share_prefixes else 0.0
        rate = cost.seconds * (1 - saving)
        self.step_seconds = rate * tokens
        # forward is a third of forward and backward
        self.eval_seconds = rate / 3 * sum(len(item) for item in ready.validation)
        yield replace(
            ready.preflight,
            memory=cost.memory,
            seconds=round(self._seconds_left(), 1),
            step_seconds=round(self.step_seconds, 3),
            measured=True,
            shared_prefixes=round(saving, 4),
        )

    def _longest_row(self, items: Sequence[Item]) -> tuple[Row, list[Any]]:
        """The first row of the longest `items`, and what else decides what it takes."""
        row = lay_end_to_end(filled(items, self.tokens_per_row)[0])
        return row, [self.spec.method, self.spec.optimizer, self.checkpointing, self.spec.threads]

    def _known_cost(self, items: Sequence[Item]) -> Cost | None:
        """What an earlier run found, unless memory is shorter than it was then."""
        known = self.ready.before.cost(*self._longest_row(items))
        device, limit = self.ready.device, self.ready.job.memory_limit
        if known is None or limit is not None:
            return None
        return known if known.memory - devices.peak_memory(device) <= devices.obtainable_memory(device) else None

    def _measured_cost(self, items: Sequence[Item]) -> Generator[Event, None, Cost]:
        ready = self.ready
        random = devices.random_state(ready.device)
        shortest = ready.train[int(ready.train.lengths.argmin())]

        def compute() -> float:
            ready.network.backward(lay_end_to_end([shortest]), 1.0)  # buffers, once
            ready.trained.clear()
            row, _ = self._longest_row(items)
            devices.synchronize(ready.device)
            begin = time.perf_counter()
            ready.network.backward(row, 1.0)
            devices.synchronize(ready.device)
            return (time.perf_counter() - begin) / len(row)

        seconds = yield from self._fitting(compute, self.step, len(items[0]), gradients=True)
        ready.trained.clear()
        devices.restore_random_state(random, ready.device)
        return Cost(seconds, devices.peak_memory(ready.device))

    # ------------------------------------------------------------------ one optimizer step

    def _train_step(self) -> Iterator[Event]:
        ready, begin = self.ready, time.perf_counter()
        items = [ready.train[index] for index in ready.order.step(self.step)]
        learned = sum(item.learned for item in items)
        loss = yield from self._gradients(items, learned)
        norm = optim.norm(ready.trained)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            yield from self._written(wait=True)
            raise AfinaError(_not_finite(self.step + 1, loss), "failed")
        rate = ready.learning_rate * optim.rate_at(
            self.step, ready.total_steps, self.spec.warmup_steps, self.spec.schedule
        )
        for group in ready.optimizer.param_groups:
            group["lr"] = rate
        self.writer.release()
        optim.step(ready.optimizer, ready.trained, optim.clipped(norm, self.spec.max_grad_norm))
        ready.network.weights_changed()
        ready.trained.clear()
        devices.synchronize(ready.device)
        self.step += 1

        seconds = time.perf_counter() - begin
        self.steps_timed += 1
        share = max(0.1, 1 / self.steps_timed)
        self.step_seconds = (1 - share) * self.step_seconds + share * seconds
        # tokens of shared prefixes count in every example: they are read, whether computed once or often
        tokens = sum(len(item) for item in items)
        yield Step(
            step=self.step,
            total_steps=ready.total_steps,
            epoch=round(self.step / ready.order.steps_per_epoch, 4),
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_second=round(tokens / seconds, 1),
            memory=devices.peak_memory(ready.device),
            seconds_left=round(self._seconds_left(), 1),
        )
        yield from self.watch.saw_step(self.step, loss, learned, ready.total_steps)

    def _gradients(self, items: Sequence[Item], learned: int) -> Generator[Event, None, float]:
        """Gradients of the mean loss over the `learned` tokens of `items`, row by row; returns that loss."""
        network = self.ready.network

        def compute() -> float:
            return sum(network.backward(row, 1.0 / learned) for row in self._rows(items))

        total = yield from self._fitting(compute, self.step + 1, max(len(item) for item in items), gradients=True)
        return total / learned

    def _rows(self, items: Sequence[Item]) -> Iterator[Row]:
        """How `items` lie in memory now."""
        return (prefixes.rows_of if self.share_prefixes else rows_of)(items, self.tokens_per_row)

    def _fitting(
        self, compute: Callable[[], float], step: int, longest: int, gradients: bool
    ) -> Generator[Event, None, float]:
        """What `compute` gives; where memory runs out, it is asked again with less, and the result is the same.

        Less is first half the tokens in a row, down to the `longest` example, then, where there are gradients, activations
        that are computed again and not kept. Raises the allocator's error when nothing is left to give up.
        """
        ready = self.ready
        while True:
            random = devices.random_state(ready.device)
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                told = self._give_up(longest, gradients) if devices.is_out_of_memory(error) else None
                if told is None:
                    raise
            ready.trained.clear()
            devices.release_memory(ready.device)
            devices.restore_random_state(random, ready.device)
            yield Retry(step, told)

    def _give_up(self, longest: int, gradients: bool) -> Message | None:
        """Take less memory from now on; returns what to say, None when there is nothing left to give up."""
        if self.tokens_per_row > longest:
            self.tokens_per_row = max(longest, self.tokens_per_row // 2)
            self.ready.network.reserve(self.tokens_per_row)
            text = N_(
                "Memory ran out. The step is computed in smaller pieces of {tokens} tokens; the result is the same."
            )
            return say(text, tokens=self.tokens_per_row)
        if gradients and not self.checkpointing:
            self._checkpoint_activations()
            return say(
                N_("Memory ran out. Less is kept and more computed again, which takes longer; the result is the same.")
            )
        return None

    def _checkpoint_activations(self) -> None:
        self.checkpointing = True
        self.ready.network.checkpoint_activations()

    def _seconds_left(self) -> float:
        steps = self.ready.total_steps - self.step
        evals = math.ceil(steps / self.ready.eval_every) if self.ready.validation else 0
        return steps * self.step_seconds + evals * self.eval_seconds

    # ------------------------------------------------------------------ looking, saving

    def _evaluate(self) -> Generator[Event, None, bool]:
        """Validation loss now; returns whether it is the best of those that have a checkpoint."""
        if not self.ready.validation:
            return False
        yield Phase("evaluating")
        begin = time.perf_counter()
        items, before = self.ready.validation, self.ready.before
        loss = before.loss(items, self.tokens_per_row) if self.step == 0 else None
        if loss is None:
            loss = yield from self._validation_loss(items)
            self.eval_seconds = time.perf_counter() - begin
        if not math.isfinite(loss):
            yield from self._written(wait=True)
            raise AfinaError(_not_finite(self.step, loss), "failed")
        if self.step == 0:
            before.keep_loss(items, self.tokens_per_row, loss)
        earlier = self.watch.best_trained_step
        best, advice = self.watch.saw_eval(self.step, loss)
        tokens = sum(item.learned for item in self.ready.validation)
        perplexity = math.exp(min(loss, 700.0))
        yield Eval(self.step, loss, perplexity, best, tokens, round(time.perf_counter() - begin, 3))
        yield from advice
        yield Phase("training")
        return self.watch.best_trained_step != earlier

    def _validation_loss(self, items: Sequence[Item]) -> Generator[Event, None, float]:
        network, longest = self.ready.network, max(len(item) for item in items)
        return (
            yield from self._fitting(
                lambda: validation_loss(network, self._rows(items)), self.step, longest, gradients=False
            )
        )

    def _sample(self, when: Literal["before", "during", "after"]) -> Iterator[Event]:
        prompts, before = self.ready.prompts, self.ready.before
        if prompts:
            yield Phase("sampling")
            texts = before.answers(prompts) if when == "before" else None
            try:
                if texts is None:
                    texts = samples.answers(self.ready.network, self.ready.chat, prompts)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            if texts is None:
                devices.release_memory(self.ready.device)
                yield Warn("no_sample", say(N_("The sample answers are left out this time: memory ran out.")))
            else:
                if when == "before":
                    before.keep_answers(prompts, texts)
                yield Sample(self.step, when, samples.as_answers(prompts, texts))
            if when == "during":
                yield Phase("training")

    def _save(self) -> Iterator[Event]:
        """Begin to write a checkpoint of this step, unless there is one; `_written` tells when it is complete."""
        if self.saved_step == self.step:
            return
        yield from self._written(wait=True)
        state = {
            "watch": self._timed().as_json(),
            "tokens_per_row": self.tokens_per_row,
            "checkpointing": self.checkpointing,
            "share_prefixes": self.share_prefixes,
            "precision": self.ready.preflight.precision,
        }
        ready = self.ready
        # what is the best now is what it will be judged by after a resume
        best = self.best_when_saved = self.watch.best_trained_step
        self.writer.begin(self.step, ready.trained, ready.optimizer, state, ready.device, self.spec.keep, best)
        self.saved_step = self.step

    def _written(self, wait: bool) -> Iterator[Event]:
        """Say that the checkpoint begun last is complete, when it is."""
        saved = self.writer.finish(wait)
        if saved is not None:
            path = saved.folder.relative_to(self.folder).as_posix()
            removed = [f"{checkpoint.FOLDER}/{name}" for name in saved.removed]
            yield Checkpoint(saved.step, path, self.best_when_saved == saved.step, removed)

    def _resume(self) -> None:
        """Go back to the newest complete checkpoint, if there is one."""
        found = checkpoint.complete(self.folder)
        if found:
            state = checkpoint.load(found[-1], self.ready.trained, self.ready.optimizer, self.ready.device)
            self.ready.network.weights_changed()
            self.step = self.saved_step = int(state["step"])
            self.watch = Watch.from_json(state["watch"])
            self.tokens_per_row = int(state["tokens_per_row"])
            self.share_prefixes = bool(state.get("share_prefixes")) and self.ready.network.path == "fast"
            if self.ready.job.memory_limit is not None:
                self.tokens_per_row = min(self.tokens_per_row, self.ready.layout.tokens_per_row)
            if state.get("checkpointing") and not self.checkpointing:
                self._checkpoint_activations()
            self.started = time.monotonic() - self.watch.seconds

    def _timed(self) -> Watch:
        self.watch.seconds = time.monotonic() - self.started
        return self.watch

    # ------------------------------------------------------------------ the end

    def _finish(self, keep: Keep) -> Iterator[Event]:
        yield from self._save()
        yield from self._written(wait=True)
        self._take(keep)
        yield from self._sample("after")
        yield from self.watch.saw_end(self.step)
        path = yield from self._write()
        kept_best = keep == "best" and self.watch.best_trained is not None
        validation = self.watch.best_trained if kept_best else self.watch.validation_loss
        seconds = round(self._timed().seconds, 1)
        yield Finished(self.step, self.watch.train_loss(), validation, path, seconds, self.watch.best_step)

    def _stopped(self, keep: Keep) -> Iterator[Event]:
        if self.step == 0:
            yield Stopped(0, "none", None, None, self.watch.validation_loss, round(self._timed().seconds, 1))
            return
        yield from self._save()
        yield from self._written(wait=True)
        kept = self._take(keep)
        path = yield from self._write()
        validation = self.watch.best_trained if kept == "best" else self.watch.validation_loss
        yield Stopped(self.step, kept, path, self.watch.train_loss(), validation, round(self._timed().seconds, 1))

    def _take(self, keep: Keep) -> Keep:
        """Put the best weights in place of the last ones, where asked and where there are any."""
        best = self.watch.best_trained_step
        saved = {each.step: each for each in checkpoint.complete(self.folder)}
        if keep == "best" and best in saved:
            checkpoint.load_weights(saved[best], self.ready.trained)
            self.ready.network.weights_changed()
            return "best"
        return "last"

    def _write(self) -> Generator[Event, None, str]:
        """Write the result; returns its path inside the run folder."""
        yield Phase("saving")
        ready, job = self.ready, self.ready.job
        notes = {
            **job.notes,
            "base": str(job.model_folder),
            "merged_first": [str(path) for path in job.adapter_folders],
        }
        if self.spec.quantization != "none":
            notes["trained_beside"] = {"quantization": self.spec.quantization}
        if ready.wrapped is not None:
            output.write_adapter(ready.wrapped, self.folder / "adapter", job.model_folder, ready.chat, notes)
            return "adapter"
        output.write_model(
            ready.network.model, ready.trained.named(), self.folder / "model", job.model_folder, ready.chat, notes
        )
        return "model"


def _not_finite(step: int, loss: float) -> Problem:
    return Problem(
        "loss_not_finite",
        say(N_("The loss is no longer a number (step {step})."), step=step),
        say(N_("Use a smaller learning rate, for example a tenth of it. The last checkpoint before is kept.")),
        field="learning_rate",
        value=loss,
    )
