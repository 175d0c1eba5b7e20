"""The addresses of the datasets: all of them, one with its report, rows and history, and writing one.

What takes a while on a big file is a part of its own (`?part=…`), which the page asks for after it has appeared. Knows
nothing of how a file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from afina import actions
from afina.actions.datasets import LENGTH
from afina.core.messages import N_
from afina.core.paths import Home
from afina.data.offers import offers
from afina.data.titles import title
from afina.web.histogram import histogram
from afina.web.language import speaker
from afina.web.render import page
from afina.web.show import home_of, show

router = APIRouter(include_in_schema=False)

PAGE = 20
COLUMNS = ("prompt", "answer", "text", "system", "context")
VIEWS = ("turns", "text", "tokens")
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


@dataclass(frozen=True)
class Wanted:
    """What the address asks of a dataset's page."""

    offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    view: str = "turns"
    model: str | None = None
    problem: str | None = None
    search: str | None = None
    length: Annotated[int, Query(ge=16, le=1_048_576)] = LENGTH
    validation: str | None = None

    @property
    def asked(self) -> actions.Asked:
        """Which rows are wanted."""
        return actions.Asked(self.problem or None, self.search or None, self.length, self.validation or None)


@router.get("/datasets/{name}")
def dataset(request: Request, name: str, query: Annotated[Wanted, Depends()], part: str | None = None) -> Response:
    """One dataset: its problems first, then its rows and its history, each of them a part too."""
    home = home_of(request)
    if part == "report":
        return page(request, "_report.html", **_report(request, name, query))
    if part == "rows":
        return page(request, "_rows.html", **_rows(home, name, query))
    if part == "columns":
        tried = {key: request.query_params.get(key) for key in COLUMNS if key in request.query_params} or None
        return page(request, "_columns.html", asked=actions.column_mapping(home, name, tried))
    if part == "lengths":
        found = histogram(actions.dataset_lengths(home, name), query.length)
        return page(request, "_lengths.html", lengths=found, query=query)
    if part == "history":
        return page(request, "_history.html", **_history(request, name))
    info = actions.dataset_info(home, name)
    models = [item for item in actions.list_models(home) if item.status == "ready"]
    if query.view != "turns" and not query.model and models:
        query = Wanted(**{**vars(query), "model": models[0].id})
    told: dict[str, Any] = {"info": info, "query": query, "report": None, "rows": None, "history": None, "asked": None}
    if info.size <= AT_ONCE_BYTES:
        told["info"] = actions.dataset(home, name)[0]
        told["asked"] = actions.column_mapping(home, name)
        told |= _report(request, name, query) | _rows(home, name, query) | _history(request, name)
    return show(request, "dataset.html", models=models, **{"title": title, **told})


@router.get("/datasets/{name}/diff")
def diff(
    request: Request,
    name: str,
    before: Annotated[int | None, Query(ge=0, le=10**6)] = None,
    after: Annotated[int | None, Query(ge=0, le=10**6)] = None,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:
    """What differs between two steps of a dataset's history, as a part of its page."""
    found = actions.dataset_diff(home_of(request), name, before, after, offset, PAGE)
    return page(request, "_diff.html", diff=found, offset=offset, page_size=PAGE)


@router.get("/write")
def write(request: Request) -> Response:
    """Writing a dataset: typing or pasting pairs, with what they are taken for beside them."""
    return show(request, "write.html", path="/datasets/write", formats=_formats(request))


def _report(request: Request, name: str, query: Wanted) -> dict[str, Any]:
    """What `_report.html` draws."""
    home = home_of(request)
    info, _ = actions.dataset(home, name)
    report = actions.full_report(home, name, query.length, query.validation or None)
    return {
        "info": info,
        "report": report,
        "formats": _formats(request),
        "page_size": PAGE,
        "query": query,
        "offers": offers,
        "title": title,
    }


def _history(request: Request, name: str) -> dict[str, Any]:
    """What `_history.html` draws."""
    return {"history": actions.dataset_history(home_of(request), name).in_words(speaker(request).write)}


def _rows(home: Home, name: str, query: Wanted) -> dict[str, Any]:
    """What `_rows.html` draws: rows as conversations, or as the model's text or tokens when its tokenizer is asked for."""
    by_model = query.view in ("text", "tokens") and query.model
    if by_model and query.model:
        found = actions.dataset_tokens(home, name, query.model, query.offset, PAGE, query.length, query.asked)
    else:
        found = actions.dataset_rows(home, name, query.offset, PAGE, query.asked)
    return {
        **{key: found[key] for key in ("rows", "total", "version")},
        "view": query.view if by_model and query.view in VIEWS else "turns",
        "query": query,
        "page_size": PAGE,
        "title": title,
    }


def _formats(request: Request) -> dict[str, str]:
    write = speaker(request)
    return {code: write.gettext(words) for code, words in FORMATS.items()}
