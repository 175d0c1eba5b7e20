"""The addresses of the library: datasets, models, and the chat that tries them.

Lists that change behind the page's back (a file dropped into the folder, a model being converted) are drawn by the same
template twice: inside the page, and alone with `?part=…`, which the page asks for again and again (the ETag that every
answer carries makes that cheap). Knows nothing of how a file is read or a model answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from afina import actions
from afina.core.messages import N_
from afina.core.paths import Home
from afina.core.spec import TrainSpec
from afina.registry.records import ModelInfo
from afina.web.language import speaker
from afina.web.render import page
from afina.web.show import home_of, show

router = APIRouter(include_in_schema=False)

PAGE = 20
LENGTH: int = TrainSpec.model_fields["max_length"].default
STARTER = "starter"
AT_ONCE_BYTES = 300_000
"""A dataset up to this size is looked through while its page is drawn; a larger one after."""
FORMATS = {
    "pairs": N_("Text document of pairs"),
    "plain": N_("Plain text"),
    "alpaca": N_("Instructions and answers"),
    "table": N_("Table of questions and answers"),
    "messages": N_("Conversations (messages)"),
    "sharegpt": N_("Conversations (ShareGPT)"),
    "text": N_("Documents"),
    "preference": N_("Preferences"),
}


@router.get("/datasets")
def datasets(request: Request, part: str | None = None) -> Response:
    """All datasets, a row a file; `?part=list` is the table alone."""
    home = home_of(request)
    runs = actions.list_runs(home)
    told: dict[str, Any] = {
        "datasets": sorted(actions.list_datasets(home), key=lambda item: item.name.casefold()),
        "run_names": {run.id: run.name for run in runs},
        "formats": _formats(request),
        "folder": str(home.datasets),
    }
    if part == "list":
        return page(request, "_datasets.html", **told)
    return show(request, "datasets.html", runs=runs, **told)


@router.get("/datasets/{name}")
def dataset(
    request: Request,
    name: str,
    part: str | None = None,
    offset: int = Query(0, ge=0, le=10**9),
    view: str = "turns",
    model: str | None = None,
) -> Response:
    """One dataset: its problems first, then its rows. Both are also parts, for looking through a big file takes a while."""
    home = home_of(request)
    if part == "report":
        return page(request, "_report.html", **_report(request, name))
    if part == "rows":
        return page(request, "_rows.html", **_rows(home, name, offset, view, model))
    listed = actions.list_datasets(home)
    info = next((item for item in listed if item.name == name), None) or actions.dataset(home, name)[0]
    models = [item for item in actions.list_models(home) if item.status == "ready"]
    if view == "tokens" and not model and models:
        model = models[0].id
    told: dict[str, Any] = {"info": info, "report": None, "rows": None, "view": view, "offset": offset, "model": model}
    if info.size <= AT_ONCE_BYTES:
        told |= _report(request, name) | _rows(home, name, offset, view, model)
    return show(request, "dataset.html", models=models, **told)


def _report(request: Request, name: str) -> dict[str, Any]:
    """What `_report.html` draws."""
    info, report = actions.dataset(home_of(request), name)
    return {"info": info, "report": report, "formats": _formats(request), "page_size": PAGE}


def _rows(home: Home, name: str, offset: int, view: str, model: str | None) -> dict[str, Any]:
    """What `_rows.html` draws: rows as conversations, or as tokens with the mask when a model's tokenizer is asked for."""
    told: dict[str, Any] = {"offset": offset, "page_size": PAGE, "view": view, "model": model}
    if view == "tokens" and model:
        found = actions.dataset_tokens(home, name, model, offset, PAGE, LENGTH)
    else:
        found = actions.dataset_rows(home, name, offset, PAGE)
        told["view"] = "turns"
    return {**told, "rows": found["rows"], "total": found["total"], "max_length": LENGTH}


@router.get("/models")
def models(request: Request, part: str | None = None) -> Response:
    """All models as trees from each base; `?part=tree` is the trees alone."""
    listed = _models(request)
    told: dict[str, Any] = {
        "trees": forest(listed),
        "parameters": partial(_parameters, request),
        "starter_missing": not any(STARTER in item.aliases for item in listed),
    }
    if part == "tree":
        return page(request, "_models.html", **told)
    return show(request, "models.html", **told)


@router.get("/models/{ref}")
def model(request: Request, ref: str) -> Response:
    """One model: what it is, where it came from, what was made from it."""
    home = home_of(request)
    info = actions.get_model(home, ref).in_words(speaker(request).write)
    listed = _models(request)
    runs = actions.list_runs(home)
    return show(
        request,
        "model.html",
        runs=runs,
        info=info,
        parent=next((item for item in listed if item.id == info.parent), None),
        children=[item for item in listed if item.parent == info.id],
        run=next((item for item in runs if item.id == info.run), None),
        names={item.name for item in actions.list_datasets(home)},
    )


@router.get("/chat")
def chat(request: Request) -> Response:
    """Trying models, one or two side by side; `?model=…&base=…` chooses them."""
    listed = [item for item in _models(request) if item.status == "ready"]
    choices = [
        {"id": item.id, "name": item.name, "kind": item.kind, "parent": item.parent, "created": item.created}
        | {"aliases": item.aliases}
        for item in listed
    ]
    return show(request, "chat.html", models=listed, choices=choices)


@dataclass
class Branch:
    """A model and what was trained from it."""

    model: ModelInfo
    children: list[Branch] = field(default_factory=list)


def forest(listed: list[ModelInfo]) -> list[Branch]:
    """The models as trees: base models by name, descendants newest first; one whose parent is gone stands by itself."""
    branches = {item.id: Branch(item) for item in listed}
    roots: list[Branch] = []
    for item in sorted(listed, key=lambda item: -item.created):
        parent = branches.get(item.parent or "")
        (parent.children if parent and parent.model.id != item.id else roots).append(branches[item.id])
    return sorted(roots, key=lambda branch: (branch.model.kind != "base", branch.model.name.casefold()))


def _models(request: Request) -> list[ModelInfo]:
    write = speaker(request).write
    return [item.in_words(write) for item in actions.list_models(home_of(request))]


def _parameters(request: Request, count: int) -> str:
    """A model's size as people say it: "135 million parameters", "1.5 billion parameters"."""
    write = speaker(request)
    if count >= 10**9:
        return write.gettext(N_("{n} billion parameters"), n=write.number(count / 10**9, 1))
    if count >= 10**6:
        return write.gettext(N_("{n} million parameters"), n=round(count / 10**6))
    return write.ngettext("{n} parameter", "{n} parameters", count)


def _formats(request: Request) -> dict[str, str]:
    write = speaker(request)
    return {code: write.gettext(words) for code, words in FORMATS.items()}
