"""Every failure has the one shape, in the reader's language, and none is the server's fault."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.web.conftest import ADDRESS, problems


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("PUT", "/api/v1/health", 405, "method_not_allowed"),
        ("GET", "/api/v1/runs/none", 404, "run_not_found"),
        ("GET", "/api/v1/models/none", 404, "model_not_found"),
        ("GET", "/api/v1/datasets/none", 404, "dataset_not_found"),
        ("GET", "/api/v1/datasets/x/rows?limit=0", 422, "wrong_value"),
        ("GET", "/api/v1/runs/x/events?offset=-1", 422, "wrong_value"),
        ("GET", "/static/x/nothing.css", 404, "not_found"),
    ],
)
def test_failures_have_one_shape(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert problems(answer)[0]["code"] == code


@pytest.mark.parametrize("body", [b"{", b"nonsense", b"\xff\xfe", b'{"model": NaN', b"[" * 3000])
def test_what_is_not_json_is_said_to_be_so(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/v1/chat", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    problems(answer)


def test_all_problems_of_a_body_come_together(client: TestClient) -> None:
    answer = client.post("/api/v1/chat", json={"model": "", "messages": [], "temperature": "hot", "colour": "red"})
    assert answer.status_code == 422
    found = {problem["field"]: problem["code"] for problem in problems(answer)}
    assert found == {
        "model": "wrong_value",
        "messages": "wrong_value",
        "temperature": "wrong_value",
        "colour": "unknown_field",
    }


def test_all_problems_of_a_spec_come_together(client: TestClient) -> None:
    spec = {"model": "none", "dataset": "none.json", "epochs": -1, "batch_size": "many", "colour": "red"}
    answer = client.post("/api/v1/runs", json=spec)
    assert answer.status_code == 422
    found = {problem["code"] for problem in problems(answer)}
    assert {"out_of_range", "wrong_type", "unknown_setting", "dataset_not_found", "model_not_found"} <= found


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "1e999", "9" * 5000, '"\\ud800"', "[[[[]]]]", '"' + "x" * 100_000 + '"']
)
def test_strange_values_are_the_senders_mistake(client: TestClient, value: str) -> None:
    content = f'{{"model": "m", "dataset": "d", "epochs": {value}}}'
    answer = client.post("/api/v1/runs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404, 422), answer.text
    problems(answer)


def test_the_language_is_the_readers(client: TestClient) -> None:
    said = {
        client.get("/api/v1/nothing", headers={"Accept-Language": language}).json()["error"]["message"]
        for language in ("en", "tet", "pt-BR", "id")
    }
    assert len(said) == 4
    cookie = {"Cookie": "afina_language=pt", "Accept-Language": "en"}
    answer = client.get("/api/v1/nothing", headers=cookie)
    assert answer.headers["content-language"] == "pt"


def test_a_person_gets_a_page(client: TestClient) -> None:
    answer = client.get("/nothing", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "not_found" in answer.text


def test_a_mistake_of_ours_is_admitted_and_still_guarded(app: FastAPI) -> None:
    @app.get("/api/v1/broken")
    def broken() -> None:
        raise ZeroDivisionError

    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        answer = client.get("/api/v1/broken")
    assert answer.status_code == 500
    assert problems(answer)[0]["code"] == "internal"
    assert "Traceback" not in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
