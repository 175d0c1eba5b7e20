"""`show`: a page inside the frame, with what the frame itself needs to know (the runs in progress).

Knows nothing of any one page.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from afina import actions
from afina.core.events import ACTIVE
from afina.core.paths import Home
from afina.registry.records import RunInfo
from afina.web.language import speaker
from afina.web.render import page


def home_of(request: Request) -> Home:
    """The home folder this server serves."""
    home: Home = request.app.state.home
    return home


def in_progress(runs: list[RunInfo]) -> list[RunInfo]:
    """Those that compute or wait, the computing one first."""
    waiting = [run for run in runs if run.status == "queued"]
    return [run for run in runs if run.status in ACTIVE] + sorted(waiting, key=lambda run: run.queue_position or 0)


def show(
    request: Request, name: str, *, runs: list[RunInfo] | None = None, status: int = 200, **context: Any
) -> Response:
    """The template `name`; `runs` spares a second look when the page has listed them already."""
    write = speaker(request).write
    listed = actions.list_runs(home_of(request)) if runs is None else runs
    active = [run.in_words(write) for run in in_progress(listed)]
    return page(request, name, status, active_runs=active, **context)
