"""The addresses of the models, and the chat that tries them.

Lists that change behind the page's back (a model being converted) are drawn by the same
template twice: inside the page, and alone with `?part=…`, which the page asks for again and again (the ETag that every
answer carries makes that cheap). Knows nothing of how a model answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from afina import actions
from afina.core.messages import N_
from afina.registry.records import ModelInfo
from afina.web.language import speaker
from afina.web.render import page
from afina.web.show import home_of, show

router = APIRouter(include_in_schema=False)

STARTER = "starter"


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
