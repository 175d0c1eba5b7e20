"""The API's nouns, through HTTP alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from afina.core.paths import Home
from afina.core.spec import TrainSpec
from afina.runs.launch import computing_lock
from tests.web.conftest import SETTINGS, Server, add_pairs, create_app, problems


@pytest.fixture
def app(with_model: Home) -> FastAPI:
    add_pairs(with_model, rows=40)
    return create_app(with_model, SETTINGS)


SPEC = {"model": "small", "dataset": "sums.json", "epochs": 2, "batch_size": 4}


def test_settings_are_those_of_the_spec(client: TestClient) -> None:
    groups = client.get("/api/v1/settings").json()
    names = [setting["name"] for group in groups for setting in group["settings"]]
    assert sorted(names) == sorted(TrainSpec.model_fields)
    for group in groups:
        for setting in group["settings"]:
            assert setting["label"]
            assert setting["help"]
    tetum = client.get("/api/v1/settings", headers={"Accept-Language": "tet"}).json()
    assert [group["title"] for group in tetum] != [group["title"] for group in groups]


def test_a_file_that_is_dropped_in_appears(home: Home, client: TestClient) -> None:
    assert [item["name"] for item in client.get("/api/v1/datasets").json()] == ["sums.json"]
    (home.datasets / "notes.txt").write_text("Q: Who?\nA: Me.\n")
    assert [item["name"] for item in client.get("/api/v1/datasets").json()] == ["notes.txt", "sums.json"]


@pytest.mark.parametrize("name", ["pairs.jsonl", "Dadus foun (1).txt", "日本語.json", "a'b.txt"])
def test_upload_look_and_delete(home: Home, client: TestClient, name: str) -> None:
    content = b"\n".join(
        b'{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "ok"}]}' % n
        for n in range(9)
    )
    made = client.post("/api/v1/datasets", files={"file": (name, content)})
    assert made.status_code == 201, made.text
    assert made.json()["name"] == name
    assert (home.datasets / name).read_bytes() == content
    detail = client.get(f"/api/v1/datasets/{name}").json()
    assert detail["report"]["format"] == detail["format"] == "messages"
    assert detail["report"]["rows"] == 9
    assert {group["code"] for group in detail["report"]["warnings"]} >= {"few_rows"}
    page = client.get(f"/api/v1/datasets/{name}/rows?offset=7&limit=5").json()
    assert page["total"] == 9
    assert [row["row"] for row in page["rows"]] == [8, 9]
    assert [turn["role"] for turn in page["rows"][0]["turns"]] == ["user", "assistant"]
    tokens = client.get(f"/api/v1/datasets/{name}/tokens?model=small&limit=1").json()
    assert tokens["rows"][0]["learned"] > 0
    assert "7?" not in "".join(piece["text"] for piece in tokens["rows"][0]["pieces"] if piece["state"] == "learned")
    assert client.delete(f"/api/v1/datasets/{name}").json() == {"deleted": name}
    assert not (home.datasets / name).exists()


def test_a_large_upload_goes_to_disk(home: Home, client: TestClient) -> None:
    line = json.dumps({"instruction": "Say it.", "output": "word " * 200}) + "\n"
    content = line.encode() * 8000
    made = client.post("/api/v1/datasets", files={"file": ("large.jsonl", content)})
    assert made.status_code == 201
    assert (home.datasets / "large.jsonl").stat().st_size == len(content)
    assert [path.name for path in home.datasets.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data; boundary=b"),
        (b"--b\r\n", "multipart/form-data; boundary=b"),
        (b"nonsense", "multipart/form-data; boundary=b"),
        (b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhalf", "multipart/form-data; boundary=b"),
        (b"--b\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"--b\r\n" + b"X" * 100_000 + b": y\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500),
        (b"x", "multipart/form-data"),
        (b"{}", "application/json"),
        (b"x", ""),
    ],
)  # fmt: skip
def test_an_upload_without_a_file_is_explained(home: Home, client: TestClient, content: bytes, kind: str) -> None:
    answer = client.post("/api/v1/datasets", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert problems(answer)[0]["code"] == "bad_upload"
    assert [path.name for path in home.datasets.iterdir()] == ["sums.json"]


def test_the_report_speaks_the_readers_language(home: Home, client: TestClient) -> None:
    (home.datasets / "broken.jsonl").write_text('{"instruction": "a", "output": ""}\n{"instruction": 7}\n')
    said = {
        client.get("/api/v1/datasets/broken.jsonl", headers={"Accept-Language": code}).json()["report"]["errors"][0][
            "message"
        ]
        for code in ("en", "tet", "pt", "id")
    }
    assert len(said) == 4
    rows = client.get("/api/v1/datasets/broken.jsonl/rows").json()["rows"]
    assert {problem["code"] for row in rows for problem in row["problems"]} >= {"empty_answer"}


def test_a_plan_before_a_run(home: Home, client: TestClient) -> None:
    plan = client.post("/api/v1/runs/plan", json=SPEC).json()
    assert plan["rows"] + plan["validation_rows"] == 40
    assert plan["total_steps"] == 2 * plan["steps_per_epoch"]
    assert plan["problems"] == []
    wrong = client.post("/api/v1/runs/plan", json={**SPEC, "epochs": 0, "model": "none"})
    assert wrong.status_code == 200
    assert {problem["code"] for problem in wrong.json()["problems"]} == {"out_of_range", "model_not_found"}
    strange = client.post("/api/v1/runs/plan", content='{"epochs": NaN}', headers={"Content-Type": "application/json"})
    assert strange.status_code in (200, 422)
    assert list(home.runs.iterdir()) == []


def test_a_check_before_a_run_is_measured(
    home: Home, client: TestClient, tiny_model: Path, start_server: Callable[..., Server]
) -> None:
    """What is wrong is told; the rest is measured; while a run computes it is an estimate; hanging up ends it."""
    told = client.post("/api/v1/runs/check", json={**SPEC, "epochs": 0}).json()
    assert [problem["code"] for problem in told["problems"]] == ["out_of_range"]
    shutil.rmtree(home.models / "small")
    shutil.copytree(tiny_model, home.models / "small")
    found = client.post("/api/v1/runs/check", json=SPEC).json()
    assert found["problems"] == []
    assert (found["measured"], found["busy"]) == (True, False)
    assert found["memory"] > 100e6
    assert found["step_seconds"] > 0

    server = start_server()
    with suppress(httpx.ReadTimeout):
        httpx.post(f"{server.address}/api/v1/runs/check", json=SPEC, timeout=1.0)
    until = time.monotonic() + 20
    while list(home.runs.iterdir()) and time.monotonic() < until:
        time.sleep(0.1)
    lock = computing_lock(home)
    assert lock.acquire(timeout=5), "nobody computes any more"
    assert client.post("/api/v1/runs/check", json=SPEC).json()["busy"] is True
    lock.release()
    assert list(home.runs.iterdir()) == []


def test_a_run_from_start_to_deletion(home: Home, client: TestClient) -> None:
    made = client.post("/api/v1/runs", json={**SPEC, "name": "first"})
    assert made.status_code == 201, made.text
    run = made.json()
    assert (run["name"], run["status"], run["spec"]["learning_rate"]) == ("first", "queued", 2e-4)
    assert [item["id"] for item in client.get("/api/v1/runs").json()] == [run["id"]]
    assert client.get("/api/v1/runs/first").json()["id"] == run["id"]
    stopped = client.post(f"/api/v1/runs/{run['id']}/stop", json={"keep": "best"})
    assert stopped.json()["status"] == "stopped"
    again = client.post(f"/api/v1/runs/{run['id']}/stop")
    assert (again.status_code, problems(again)[0]["code"]) == (409, "run_ended")
    wrong = client.post(f"/api/v1/runs/{run['id']}/stop", json={"keep": "everything"})
    assert wrong.status_code == 422
    nothing = client.post(f"/api/v1/runs/{run['id']}/resume")
    assert (nothing.status_code, problems(nothing)[0]["code"]) == (409, "nothing_to_resume")
    assert client.delete(f"/api/v1/runs/{run['id']}").status_code == 200
    assert client.get("/api/v1/runs").json() == []
    assert not (home.runs / run["id"]).exists()


def test_paths_are_not_names_here(client: TestClient, tmp_path: Path) -> None:
    """The command line takes paths to models and datasets; the web does not."""
    (tmp_path / "outside.json").write_text('[{"instruction": "a", "output": "b"}]')
    answer = client.post("/api/v1/runs", json={**SPEC, "dataset": str(tmp_path / "outside.json")})
    assert answer.status_code == 422
    chat = {"model": str(tmp_path), "messages": [{"role": "user", "content": "?"}]}
    assert client.post("/api/v1/chat", json=chat).status_code == 404


def test_models_are_listed_refused_and_deleted(home: Home, client: TestClient) -> None:
    models = client.get("/api/v1/models").json()
    assert [(model["id"], model["kind"], model["status"]) for model in models] == [("small", "base", "ready")]
    assert client.get("/api/v1/models/small").json()["context_length"] == 512
    for source in ("/no/such/folder", str(home.root / "afina.db"), "http://example.org/model"):
        answer = client.post("/api/v1/models", json={"source": source})
        assert answer.status_code == 422, answer.text
        problems(answer)
    bad = client.post("/api/v1/models", json={"source": str(home.models / "small"), "name": "../x"})
    assert bad.status_code == 422
    client.post("/api/v1/runs", json=SPEC)
    held = client.delete("/api/v1/models/small")
    assert held.status_code == 409
    shutil.copytree(home.models / "small", home.models / "other")
    assert client.delete("/api/v1/models/other").json() == {"deleted": "other"}


def test_the_description_matches_the_reference_page(client: TestClient) -> None:
    description = client.get("/api/v1/openapi.json").json()
    page = client.get("/api/v1/docs").text
    for path in description["paths"]:
        assert f">{path}<" in page
    assert "#/$defs" not in json.dumps(description)
    body = description["paths"]["/api/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["lora_rank"]["maximum"] == 1024


def test_the_machine(client: TestClient) -> None:
    found = client.get("/api/v1/machine").json()
    assert found["cores"] >= 1
    assert found["memory"]["total"] > found["memory"]["free"] > 0
    assert "torch" in found["versions"]
