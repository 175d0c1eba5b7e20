"""What a run would do, before anyone starts it: rows, steps, tokens, memory, time, and the warnings of its datasets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from afina.actions.models import ModelRef
from afina.actions.starting import Part, Prepared, prepare
from afina.core import plan as arithmetic
from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json
from afina.core.messages import N_, Message, say
from afina.core.paths import Home
from afina.core.quantization import BYTES
from afina.core.spec import TrainSpec
from afina.data.cache import checked
from afina.data.examples import Example
from afina.data.folders import size_of, state_of
from afina.data.mapping import read_as_remembered, remembered
from afina.data.report import Group, Report
from afina.data.split import counts, split
from afina.data.template import ChatTokenizer
from afina.registry import models as bases
from afina.registry import runs as rows
from afina.registry.records import Plan
from afina.runs.digest import Digest
from afina.runs.index import index

SPLIT_BYTES = 50_000_000
"""Files up to this size are really split to count; larger ones by their share."""


@dataclass(frozen=True)
class Planned:
    """The estimate, or None with the problems that stand in its way; the warnings of the datasets."""

    plan: Plan | None
    warnings: list[Group] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def as_json(self, write: Callable[[Message], str] = str) -> dict[str, Any]:
        """One flat object, as the API returns it."""
        plan = self.plan or Plan(rows=0, validation_rows=0, steps_per_epoch=0, total_steps=0)
        return {
            **plan.model_dump(),
            "warnings": [group.as_json(write) for group in self.warnings],
            "problems": [problem.as_json(write) for problem in self.problems],
        }


def plan_run(home: Home, spec: Any, *, paths: bool = False) -> Planned:
    """Estimate a run. Everything that is wrong with the spec comes back in `problems`; nothing is written or started."""
    try:
        prepared = prepare(home.create(), spec, paths=paths)
        counter = ChatTokenizer.load(prepared.model.folder, prepared.spec.chat_template)
    except AfinaError as error:
        return Planned(None, [], error.problems)
    reports = [_report(home, part, prepared, counter) for part in prepared.parts]
    own = prepared.validation is not None
    given = counts(None if own else prepared.spec.validation_rows, [report.rows for report in reports])
    shares = [_sides(home, part.path, prepared.spec, count) for part, count in zip(prepared.parts, given, strict=True)]
    several = len(reports) > 1
    warnings = [
        _named(group, part.path.name) if several else group
        for part, report in zip(prepared.parts, reports, strict=True)
        for group in report.warnings
    ]
    return Planned(_plan(home, prepared, reports, shares), warnings)


def _named(group: Group, dataset: str) -> Group:
    """Which of several datasets is meant stands before the sentence."""
    return replace(group, message=say(N_("{dataset}: {problem}"), dataset=dataset, problem=group.message))


def _report(home: Home, part: Part, prepared: Prepared, counter: ChatTokenizer) -> Report:
    """The dataset counted with the model's own tokenizer and the settings of the run."""
    spec = prepared.spec
    return checked(
        home,
        part.path,
        tokenizer=counter,
        tokenizer_key=f"{prepared.model.folder} {spec.chat_template}",
        max_length=spec.max_length,
        validation=prepared.validation.path if prepared.validation else None,
        train_on=spec.train_on,
        system_prompt=spec.system_prompt,
    )


def _sides(home: Home, path: Path, spec: TrainSpec, count: int | None) -> tuple[int, int]:
    """Rows for training and for validation of one dataset."""
    share = 0.0 if spec.validation_dataset else spec.validation_share
    return _split(home, path, size_of(path), f"{state_of(path)} {remembered(home, path)}", share, spec.seed, count)


@lru_cache(maxsize=256)
def _split(
    home: Home, path: Path, size: int, _state: str, share: float, seed: int, count: int | None
) -> tuple[int, int]:
    examples = (item for item in read_as_remembered(home, path) if isinstance(item, Example))
    if size > SPLIT_BYTES:
        rows = sum(1 for _ in examples)
        held = round(rows * share) if count is None else min(count, rows - 1)
        return rows - held, held
    train, validation = split(examples, share, seed, count)
    return len(train), len(validation)


def _plan(home: Home, prepared: Prepared, reports: list[Report], shares: list[tuple[int, int]]) -> Plan:
    spec = prepared.spec
    used = tokens = answers = cut = validation = 0
    for part, report, (train, held) in zip(prepared.parts, reports, shares, strict=True):
        count = _pieces(report, train, spec)
        weighted = arithmetic.weighted_rows(count, part.weight)
        share = weighted / count * train / max(1, train + held) if count else 0.0
        used += weighted
        validation += held
        tokens += round(((report.tokens or 0) - (report.cut_tokens or 0)) * share)
        answers += round((report.answer_tokens or 0) * share)
        cut += round((report.cut_tokens or 0) * share)
    if prepared.validation is not None:
        validation = sum(1 for item in read_as_remembered(home, prepared.validation.path) if isinstance(item, Example))
    steps = arithmetic.steps(used, spec.examples_per_step, spec.epochs, spec.max_steps)
    passes = steps.total / steps.per_epoch if steps.per_epoch else 0.0
    longest = max((report.longest or 0 for report in reports), default=0)
    return Plan(
        rows=used,
        validation_rows=validation,
        tokens=tokens,
        answer_tokens=answers,
        cut_tokens=cut,
        steps_per_epoch=steps.per_epoch,
        total_steps=steps.total,
        memory=_memory(prepared.model, spec, min(longest, spec.max_length), tokens / max(1, steps.per_epoch)),
        seconds=_seconds(home, prepared, tokens * passes),
    )


def _pieces(report: Report, train: int, spec: TrainSpec) -> int:
    """Examples that come of `train` rows: documents are cut into pieces of `max_length` tokens, the rest stays whole."""
    if report.format not in ("plain", "text") or not report.tokens:
        return train
    return max(train, math.ceil(report.tokens / spec.max_length * train / max(1, report.rows)))


def _memory(model: ModelRef, spec: TrainSpec, longest: int, step_tokens: float) -> int | None:
    """Bytes at the peak, from the model's shapes; None when its config does not say."""
    info = bases.describe(model.folder)
    try:
        config = read_json(model.folder / "config.json")
        text = config.get("text_config") or config
        hidden, layers, inner = (int(text[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
        vocabulary = int(text["vocab_size"])
        heads = int(text["num_attention_heads"])
        wide = heads * int(text.get("head_dim") or hidden // heads)
        narrow = wide * int(text.get("num_key_value_heads") or heads) // heads
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    if info.parameters is None:
        return None
    products = [
        (hidden, wide),
        (hidden, narrow),
        (hidden, narrow),
        (wide, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    lora = arithmetic.lora_parameters(products, spec.lora_rank) * layers
    return arithmetic.memory(
        info.parameters,
        info.parameters if spec.method == "full" else lora,
        tokens=max(longest, min(arithmetic.MOST_TOKENS["cpu"], math.ceil(step_tokens))),
        hidden=hidden,
        layers=layers,
        vocabulary=vocabulary,
        quantized=0 if spec.quantization == "none" else layers * sum(one * other for one, other in products),
        width=BYTES[spec.quantization],
    )


def _seconds(home: Home, prepared: Prepared, tokens: float) -> float | None:
    """Expected duration, from the newest run with the same base model and method on this machine; None without one."""
    with index(home) as session:
        for row in rows.all_runs(session):
            digest = Digest.load(row.digest)
            if row.method != prepared.spec.method or digest.speed is None or not digest.busy:
                continue
            try:
                folder = read_json(home.runs / row.id / "manifest.json")["model"]["folder"]
            except (OSError, ValueError, KeyError):
                continue
            if Path(folder) == prepared.model.folder:
                besides = max(0.0, (digest.seconds or 0.0) - digest.busy)
                return round(tokens / digest.speed + min(besides, 600.0), 1)
    return None
