"""Every verb of the program, once. The CLI, the API and the pages call only these; each takes the `Home` first."""

from afina.actions.checking import check_run
from afina.actions.columns import Columns, column_mapping, set_column_mapping
from afina.actions.datasets import (
    LENGTH,
    add_dataset,
    check_dataset,
    dataset,
    dataset_info,
    delete_dataset,
    list_datasets,
    refresh_datasets,
)
from afina.actions.machine import doctor
from afina.actions.models import ModelRef, add_model, delete_model, get_model, list_models, resolve_model
from afina.actions.planning import Planned, plan_run
from afina.actions.rows import Asked, dataset_lengths, dataset_rows, dataset_tokens, full_report
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
from afina.actions.workshop import (
    Fix,
    add_rows,
    dataset_diff,
    dataset_history,
    edit_row,
    export_dataset,
    fix_dataset,
    go_back,
    remove_rows,
    start_again,
)
from afina.actions.writing import Preview, preview_text, write_dataset

__all__ = [
    "LENGTH",
    "Asked",
    "Columns",
    "Fix",
    "ModelRef",
    "Planned",
    "Preview",
    "add_dataset",
    "add_model",
    "add_rows",
    "check_dataset",
    "check_run",
    "column_mapping",
    "dataset",
    "dataset_diff",
    "dataset_history",
    "dataset_info",
    "dataset_lengths",
    "dataset_rows",
    "dataset_tokens",
    "delete_dataset",
    "delete_model",
    "delete_run",
    "doctor",
    "edit_row",
    "export_dataset",
    "fix_dataset",
    "full_report",
    "get_model",
    "get_run",
    "go_back",
    "list_datasets",
    "list_models",
    "list_runs",
    "plan_run",
    "preview_text",
    "rebuild",
    "refresh_datasets",
    "remove_rows",
    "resolve_model",
    "resume_run",
    "run_console",
    "run_events",
    "set_column_mapping",
    "start_again",
    "start_run",
    "stop_run",
    "write_dataset",
]
