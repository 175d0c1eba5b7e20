"""The workshop through the API: each verb once, with the one shape of errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from afina.core.paths import Home
from afina.data import hub
from afina.data.watch import looking

TABLE = 'question,answer\n"Where is Dili?","In the north."\n"And Suai?",""\n"Where is Dili?","In the north."\n'


@pytest.fixture
def towns(home: Home) -> str:
    """The address of a messy dataset."""
    (home.datasets / "towns.csv").write_text(TABLE, encoding="utf-8")
    return "/api/v1/datasets/towns.csv"


def test_the_report_offers_remedies_and_a_call_applies_them(client: TestClient, towns: str) -> None:
    [group] = client.get(towns).json()["report"]["errors"]
    assert group["code"] == "empty_answer"
    assert group["remedies"] == [
        {
            "way": "drop",
            "button": "Remove these rows",
            "consequence": "Rows that will be removed: 1. All other rows stay as they are.",
        }
    ]
    step = client.post(f"{towns}/fix", json={"code": "empty_answer"}).json()
    assert (step["removed"], step["rows"], step["current"]) == (1, 2, True)
    said = client.post(f"{towns}/fix", json={"code": "duplicate"}, headers={"Accept-Language": "pt"}).json()
    assert said["message"] == "Exemplos repetidos: exemplos retirados"
    told = client.get(towns).json()
    assert (told["edited"], told["rows"], told["errors"]) == (True, 1, 0)


def test_rows_are_written_changed_and_removed(client: TestClient, towns: str) -> None:
    version = client.get(f"{towns}/rows").json()["version"]
    good = {"messages": [{"role": "user", "content": "And Suai?"}, {"role": "assistant", "content": "In the south."}]}
    assert client.put(f"{towns}/rows/2", json={**good, "version": version}).json()["changed"] == 1
    late = client.put(f"{towns}/rows/2", json={**good, "version": version})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "version_changed")
    assert client.post(f"{towns}/rows", json={"rows": [good, good]}).status_code == 201
    assert client.post(f"{towns}/rows/remove", json={"rows": [3, 5]}).json()["rows"] == 3
    lines = client.get(f"{towns}/export")
    assert lines.headers["content-type"].startswith("application/jsonl")
    assert "towns.jsonl" in lines.headers["content-disposition"]
    assert [json.loads(line)["messages"][1]["content"] for line in lines.text.splitlines()] == [
        "In the north.",
        "In the south.",
        "In the south.",
    ]
    bad = client.post(f"{towns}/rows", json={"rows": [{"messages": [{"role": "bot", "content": "x"}]}]})
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "unknown_role")
    assert client.put(f"{towns}/rows/99", json=good).json()["error"]["code"] == "row_not_found"


def test_history_diff_and_the_way_back(client: TestClient, towns: str) -> None:
    client.post(f"{towns}/fix", json={"code": "duplicate"})
    history = client.get(f"{towns}/history").json()
    assert [step["what"] for step in history["steps"]] == ["file", "fix"]
    diff = client.get(f"{towns}/diff").json()
    assert (diff["removed"], diff["total"]) == (1, 1)
    assert diff["changes"][0]["before"]["row"] == 3
    assert diff["changes"][0]["after"] is None
    assert client.post(f"{towns}/history", json={"step": 0}).json()["current"] == 0
    assert client.post(f"{towns}/history", json={"step": None}).json()["current"] == 2
    gone = client.post(f"{towns}/history", json={"step": 40})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "step_not_found")
    assert client.get(f"{towns}/rows", params={"problem": "duplicate"}).json()["total"] == 1
    assert client.get(f"{towns}/rows", params={"search": "suai"}).json()["rows"][0]["row"] == 2


def test_a_text_is_previewed_and_kept(client: TestClient, home: Home) -> None:
    text = "Question: a\nAnswer: b\n\nQuestion: c\nAnswer:\n"
    found = client.post("/api/v1/datasets/preview", json={"text": text}).json()
    assert (found["report"]["format"], found["report"]["rows"]) == ("pairs", 2)
    assert found["rows"][1]["problems"][0]["code"] == "empty_answer"
    info = client.post("/api/v1/datasets/written", json={"name": "my words", "text": text})
    assert (info.status_code, info.json()["name"]) == (201, "my words.txt")
    assert (home.datasets / "my words.txt").read_text() == text


def test_columns_are_asked_for_and_remembered(client: TestClient, towns: str, home: Home) -> None:
    assert client.get(f"{towns}/columns").json() is None
    (home.datasets / "words.csv").write_text("soru,javob\nNima gap bugun?,Yaxshi rahmat va sizda nima gap.\n")
    asked = client.get("/api/v1/datasets/words.csv/columns").json()
    assert (asked["columns"], asked["remembered"]) == (["soru", "javob"], False)
    half = client.put("/api/v1/datasets/words.csv/columns", json={"prompt": "soru"})
    assert (half.status_code, half.json()["error"]["code"]) == (422, "bad_mapping")
    told = client.put("/api/v1/datasets/words.csv/columns", json={"prompt": "soru", "answer": "javob"}).json()
    assert told["remembered"]
    assert told["rows"][0]["turns"][0]["content"] == "Nima gap bugun?"
    assert client.get("/api/v1/datasets/words.csv").json()["errors"] == 0


def test_how_far_a_look_is_and_that_it_ends_with_the_server(client: TestClient, home: Home, towns: str) -> None:
    file = home.datasets / "towns.csv"
    assert client.get(f"{towns}/progress").json() is None
    with looking(file, 80):
        assert client.get(f"{towns}/progress").json() == {"done": 0, "total": 80}
    client.app.state.stop.set()  # type: ignore[attr-defined]
    ended = client.get("/datasets/towns.csv?part=report", headers={"Accept": "application/json"})
    assert (ended.status_code, ended.json()["error"]["code"]) == (500, "stopped")


def test_a_preference_is_changed_as_what_it_is(client: TestClient, home: Home) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No idea."} for n in range(3)]
    (home.datasets / "better.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    address = "/api/v1/datasets/better.jsonl"
    [_, before, _] = client.get(f"{address}/rows").json()["rows"]
    given = {"prompt": before["turns"], "chosen": before["chosen"], "rejected": before["rejected"]}
    given["rejected"][0]["content"] = "A letter."
    assert client.put(f"{address}/rows/2", json=given).json()["changed"] == 1
    told = json.loads(client.get(f"{address}/export").text.splitlines()[1])
    assert [told[part][0]["content"] for part in ("prompt", "chosen", "rejected")] == [
        "What is 1?",
        "A number, 1.",
        "A letter.",
    ]
    half = client.put(f"{address}/rows/2", json={"prompt": given["prompt"], "chosen": given["chosen"]})
    assert (half.status_code, half.json()["error"]["code"]) == (422, "missing_field")
    given["chosen"][0]["content"] = " "
    assert client.put(f"{address}/rows/2", json=given).json()["error"]["code"] == "empty_answer"


def test_a_dataset_of_the_hub_by_its_name(
    client: TestClient, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = client.post("/api/v1/datasets/hub", json={"id": "no name at all"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "bad_name")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    away = client.post("/api/v1/datasets/hub", json={"id": "someone/proverbs"})
    assert (away.status_code, away.json()["error"]["code"]) == (503, "no_network")
    assert away.json()["error"]["kind"] == "unavailable"
    assert "copy the files" in away.json()["error"]["problems"][0]["remedy"]
    repository = tmp_path / "proverbs"
    repository.mkdir()
    (repository / "rows.csv").write_text(TABLE, encoding="utf-8")
    monkeypatch.setattr(hub, "download", lambda repo: repository)
    assert (
        client.post("/api/v1/datasets/hub", json={"id": "hub:someone/proverbs"}).json()["name"] == "someone--proverbs"
    )
    assert [item["name"] for item in client.get("/api/v1/datasets").json()] == ["someone--proverbs"]
