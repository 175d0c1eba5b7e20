"""Generated requests against the API's own description: nothing is the server's fault, every answer is as described."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckContext, CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from afina import actions
from afina.core.paths import Home
from afina.web.app import create_app
from afina.web.settings import ServerSettings
from tests.web.conftest import ADDRESS, add_pairs


def not_our_fault(ctx: CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> bool | None:
    """No answer is a server error, but that the hub cannot be reached may be said as what it is."""
    if response.status_code == 503 and response.json()["error"]["code"] == "no_network":
        return None
    return not_a_server_error(ctx, response, case)


CHECKS: list[CheckFunction] = [
    not_our_fault,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[schemathesis.BaseSchema]:
    """The API of a home with a model, a dataset and a run. What starts processes (adding a model, checking a run,
    asking torch about the machine) is tested elsewhere; the hub is out of reach, so that no request leaves the machine."""
    home = Home(tmp_path_factory.mktemp("fuzz") / "home").create()
    shutil.copytree(model_files, home.models / "small")
    add_pairs(home)
    actions.start_run(home, {"model": "small", "dataset": "sums.json", "name": "only"})
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HF_HUB_CACHE", str(home.root / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    app = create_app(home, ServerSettings(supervise=False, allowed_hosts=frozenset({"testserver"})))
    with TestClient(app, base_url=ADDRESS):
        found = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
        starts = found.exclude(method="POST", path="/api/v1/models").exclude(path="/api/v1/machine")
        yield starts.exclude(path="/api/v1/runs/check")
    monkeypatch.undo()


def _name_what_exists(case: schemathesis.Case) -> None:
    """Let a request reach the dataset, the model or the run, rather than end at a name nobody has."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = {"datasets": "sums.json", "models": "small", "runs": "only"}[
            case.path.split("/")[3]
        ]
    if "model" in (case.query or {}):
        case.query["model"] = "small"
    if isinstance(case.body, dict) and "dataset" in case.body:
        case.body |= {"model": "small", "dataset": "sums.json"}
    if case.path == "/api/v1/datasets/hub" and isinstance(case.body, dict):
        case.body["id"] = "someone/proverbs"


def test_generated_requests(described: schemathesis.BaseSchema) -> None:
    """A dozen generated requests to each address; every finding is told, not only the first."""
    found: list[str] = []
    tried = 0
    for result in described.get_all_operations():
        operation = result.ok()
        assert operation is not None
        tried += 1

        @given(operation.as_strategy(), st.booleans())
        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def requests(case: schemathesis.Case, real: bool) -> None:
            if real and case.method != "DELETE":
                _name_what_exists(case)
            case.call_and_validate(checks=CHECKS)

        try:
            requests()
        except (AssertionError, FailureGroup) as failure:
            found.append(f"{operation.label}: {failure!r} {getattr(failure, 'exceptions', '')}")
    assert tried > 20
    assert not found, "\n\n".join(found)
