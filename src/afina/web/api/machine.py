"""`/api/v1/health`, `/machine` and `/settings`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from afina import __version__, actions
from afina.core.messages import N_
from afina.core.spec import TrainSpec, about, choices, limits
from afina.web import form
from afina.web.api.records import MachineRecord, Space
from afina.web.language import speaker

router = APIRouter(tags=["machine"])


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Choice(BaseModel):
    """One value a setting may take."""

    value: str
    label: str


class Setting(BaseModel):
    """One setting of a run, as a form shows it."""

    name: str
    label: str
    help: str
    kind: str
    basic: bool
    unit: str | None
    default: Any
    limits: dict[str, float] = Field(description="Any of ge, gt, le, lt, min_length, max_length.")
    usual: tuple[float, float] | None = Field(description="The range that suits most runs.")
    choices: list[Choice]


class Group(BaseModel):
    """Settings that belong together."""

    name: str
    title: str
    settings: list[Setting]


@router.get("/health")
async def health() -> Health:
    """Whether the server answers. Needs no sign-in."""
    return Health()


@router.get("/machine")
def machine(request: Request) -> MachineRecord:
    """What this machine can do: cores, memory, accelerator, disk, versions. The first time takes some seconds."""
    write = speaker(request).write
    found = actions.doctor(request.app.state.home)
    memory = Space(total=found["memory"]["total"], free=found["memory"]["available"])
    problems = [problem.as_json(write) for problem in found["problems"]]
    return MachineRecord.model_validate({**found, "memory": memory, "problems": problems})


@router.get("/settings")
def settings(request: Request) -> list[Group]:
    """Every setting of a run with its label, help, default and limits, in groups, in the reader's language."""
    titles = {"what": N_("What"), "basic": N_("Basic"), **form.GROUPS}
    write = speaker(request).gettext
    return [
        Group(
            name=group,
            title=write(title),
            settings=[_setting(name, write) for name in TrainSpec.model_fields if about(name).group == group],
        )
        for group, title in titles.items()
    ]


def _setting(name: str, write: Any) -> Setting:
    told = about(name)
    made = form.fields({}).get(name)
    return Setting(
        name=name,
        label=write(told.label),
        help=write(told.help),
        kind=made.kind if made else name,
        basic=told.basic,
        unit=write(told.unit) if told.unit else None,
        default=form.default(name),
        limits=limits(name),
        usual=told.usual,
        choices=[Choice(value=value, label=write(form.CHOICES.get(value, value))) for value in choices(name)],
    )
