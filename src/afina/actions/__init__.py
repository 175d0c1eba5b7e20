"""Every verb of the program, once. The CLI, the API and the pages call only these; each takes the `Home` first."""

from afina.actions.datasets import (
    LENGTH,
    add_dataset,
    check_dataset,
    dataset,
    delete_dataset,
    list_datasets,
    refresh_datasets,
)
from afina.actions.machine import doctor
from afina.actions.models import ModelRef, add_model, delete_model, get_model, list_models, resolve_model
from afina.actions.planning import Planned, plan_run
from afina.actions.rows import dataset_rows, dataset_tokens
from afina.actions.runs import (
    delete_run,
    get_run,
    list_runs,
    rebuild,
    resume_run,
    run_console,
    run_events,
    start_run,
    stop_run,
)

__all__ = [
    "LENGTH",
    "ModelRef",
    "Planned",
    "add_dataset",
    "add_model",
    "check_dataset",
    "dataset",
    "dataset_rows",
    "dataset_tokens",
    "delete_dataset",
    "delete_model",
    "delete_run",
    "doctor",
    "get_model",
    "get_run",
    "list_datasets",
    "list_models",
    "list_runs",
    "plan_run",
    "rebuild",
    "refresh_datasets",
    "resolve_model",
    "resume_run",
    "run_console",
    "run_events",
    "start_run",
    "stop_run",
]
