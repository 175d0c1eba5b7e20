"""The pages' addresses: training and runs here, datasets, models and chat in `pages_datasets` and `pages_library`.

A page is drawn from what `actions` tells; everything that changes something goes through the API. Knows nothing of how
a run works.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from afina import actions
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.spec import LEARNING_RATES, TrainSpec, about
from afina.i18n import LANGUAGES
from afina.registry.models import STARTER_ALIAS
from afina.registry.records import DatasetInfo, ModelInfo, RunInfo
from afina.web import form, pages_datasets, pages_library
from afina.web.language import COOKIE, speaker
from afina.web.show import home_of, in_progress, show

router = APIRouter(include_in_schema=False)
router.include_router(pages_datasets.router)
router.include_router(pages_library.router)
YEAR = 31_536_000
GENERAL = "timor-leste.txt"
"""The English sample: general questions and answers to mix in, so that a model does not forget how to answer others."""


@router.get("/")
def first() -> Response:
    """The first page is the one people come for."""
    return RedirectResponse("/training", 303)


@router.get("/language/{code}")
def language(code: str, next: str = "/") -> Response:  # noqa: A002 - the name of the query field
    """Remember the reader's language and go back to where they were."""
    if code not in LANGUAGES:
        raise AfinaError(
            Problem(
                "unknown_language",
                say(N_("There is no language “{code}” here."), code=code[:20]),
                say(N_("Choose one from the menu.")),
                field="code",
                value=code[:20],
            ),
            "not_found",
        )
    local = next.startswith("/") and not next.startswith(("//", "/\\")) and not set(next) & set("\r\n\t")
    answer = RedirectResponse(next if local else "/", 303)
    answer.set_cookie(COOKIE, code, max_age=YEAR, samesite="lax")
    return answer


@router.get("/training")
def training(
    request: Request, run: str | None = None, model: str | None = None, dataset: str | None = None
) -> Response:
    """The form, and beside it the run that was asked for, else the one in progress, else the last one.

    `?from=RUN` fills the form with that run's settings; `?model=` and `?dataset=` choose those.
    """
    home = home_of(request)
    runs = actions.list_runs(home)
    source = request.query_params.get("from")
    values = _settings_of(actions.get_run(home, source)) if source else {}
    models = [item.in_words(speaker(request).write) for item in actions.list_models(home)]
    datasets = actions.list_datasets(home)
    made = form.fields(values)
    mixed = {part["name"]: part["weight"] for part in values.get("dataset", [])}
    chosen_datasets = ({dataset: 1.0} if dataset else mixed) or _first_dataset(datasets, runs)
    return show(
        request,
        "training.html",
        runs=runs,
        models=models,
        datasets=datasets,
        chosen_model=model or values.get("model") or _first_model(models, runs),
        chosen_datasets=chosen_datasets,
        method=values.get("method", form.default("method")),
        basic=form.basic(made),
        groups=form.groups(made),
        name_field=made["name"],
        rates=form.learning_rates(),
        from_run=source,
        run=_in_words(request, actions.get_run(home, run) if run else _current(runs)),
        first_visit=not runs,
        general=next((item.name for item in datasets if item.name == GENERAL and not item.errors), ""),
    )


@router.get("/runs")
def runs(request: Request) -> Response:
    """All runs, newest first."""
    found = actions.list_runs(home_of(request))
    listed = sorted(found, key=lambda item: item.created, reverse=True)
    return show(
        request, "runs.html", runs=found, listed=[_in_words(request, item) for item in listed], labels=_labels(request)
    )


@router.get("/runs/{ref}")
def run(request: Request, ref: str) -> Response:
    """One run, whole."""
    found = actions.get_run(home_of(request), ref)
    return show(request, "run.html", run=_in_words(request, found), settings=_settings_table(request, found))


def _in_words(request: Request, found: RunInfo | None) -> RunInfo | None:
    return found.in_words(speaker(request).write) if found else None


def _current(runs: list[RunInfo]) -> RunInfo | None:
    """What a person means by "the run": the one in progress, else the newest."""
    active = in_progress(runs)
    return active[0] if active else max(runs, key=lambda item: item.created, default=None)


def _first_model(models: list[ModelInfo], runs: list[RunInfo]) -> str | None:
    """What is chosen when nobody said: the model of the newest run, else the starter, else a base model."""
    ready = [item for item in models if item.status == "ready"]
    newest = max(runs, key=lambda item: item.created, default=None)
    wanted = (newest.model if newest else "", STARTER_ALIAS)
    known = [item for name in wanted for item in ready if name in (item.id, *item.aliases)]
    base = [item for item in ready if item.kind == "base"]
    return next((item.id for item in known + base + ready), None)


def _first_dataset(datasets: list[DatasetInfo], runs: list[RunInfo]) -> dict[str, float]:
    """What is ticked when nobody said: the dataset of the newest run, else the one with the most rows."""
    usable = {item.name: item for item in datasets if item.status == "ready" and not item.errors}
    newest = max(runs, key=lambda item: item.created, default=None)
    again = {part.name: part.weight for part in newest.dataset if part.name in usable} if newest else {}
    longest = max(usable.values(), key=lambda item: item.rows or 0, default=None)
    return again or ({longest.name: 1.0} if longest else {})


def _settings_of(found: RunInfo) -> dict[str, Any]:
    """A run's settings for the form; its name stays behind, for the next run is another one."""
    return {name: value for name, value in found.spec.items() if name in TrainSpec.model_fields and name != "name"}


def _labels(request: Request) -> dict[str, Any]:
    """What the comparison of runs writes: (setting, label) in the spec's order, and words for values."""
    write = speaker(request)
    return {
        "settings": [(name, write.gettext(about(name).label)) for name in TrainSpec.model_fields],
        "choices": {value: write.gettext(title) for value, title in form.CHOICES.items()},
    }


def _settings_table(request: Request, found: RunInfo) -> list[tuple[str, list[tuple[str, str, str, bool]]]]:
    """(group title, [(label, value, unit, whether it differs from the default)]) of the full spec."""
    write = speaker(request)
    titles = {"what": N_("What"), "basic": N_("Basic"), **form.GROUPS}
    table = []
    for group, title in titles.items():
        rows = []
        for name in TrainSpec.model_fields:
            told = about(name)
            if told.group == group and name in found.spec and name not in ("notes", "tags", "name"):
                value = found.spec[name]
                unit = write.gettext(told.unit) if told.unit and value is not None else ""
                rows.append(
                    (write.gettext(told.label), _shown(request, name, value), unit, _differs(found, name, value))
                )
        if rows:
            table.append((write.gettext(title), rows))
    return table


def _differs(found: RunInfo, name: str, value: Any) -> bool:
    """Whether a person chose this value: it is not the default, nor what the default means for this method."""
    usual = LEARNING_RATES.get(found.method) if name == "learning_rate" else None
    return about(name).group != "what" and value not in (form.default(name), usual)


def _shown(request: Request, name: str, value: Any) -> str:
    write = speaker(request)
    if value is None or value in ("", []):
        return "–"
    if name == "dataset":
        return ", ".join(
            part["name"] if part["weight"] == 1 else f"{part['name']} × {write.number(part['weight'])}"
            for part in value
        )
    if isinstance(value, str):
        return write.gettext(form.CHOICES[value]) if value in form.CHOICES else value
    if isinstance(value, bool | int | float):
        return write.show(value)
    return ", ".join(str(item) for item in value) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
