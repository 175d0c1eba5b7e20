"""Models of the hub: the whole way from a hub on this machine, through its cache, into the home, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from afina import actions
from afina.core.compute import compute_environment
from afina.core.errors import AfinaError
from afina.core.files import read_json
from afina.core.messages import Message
from afina.core.paths import Home
from afina.registry.records import ModelInfo
from afina.runs import hub as model_hub
from tests import gguf, hub_server
from tests.hub_server import Hub, reach
from tests.runs import helpers

REPO = "someone/small-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a network to it, in this process and in those it starts."""
    with hub_server.serving() as found:
        reach(found.address, tmp_path / "cache", monkeypatch)
        yield found


@pytest.fixture
def published(hub: Hub, tiny_model: Path, tmp_path: Path) -> Path:
    """A repository with more in it than belongs to a model."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "published"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "modeling_small.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"other")
    (folder / "consolidated.safetensors").write_bytes(b"once more")
    hub.put(REPO, folder)
    return folder


def refused(home: Home, source: str) -> AfinaError:
    with pytest.raises(AfinaError) as caught:
        actions.add_model(home, source, None, lambda *_: None)
    return caught.value


def test_a_model_comes_whole_and_says_from_which_commit(home: Home, hub: Hub, published: Path, tmp_path: Path) -> None:
    said: list[tuple[float, str]] = []

    def hear(share: float, message: Message) -> None:
        said.append((share, str(message)))

    info = actions.add_model(home, f"hub:{REPO}", None, hear)
    commit = hub.names[f"{REPO}@main"]
    assert (info.name, info.status, info.licence) == ("small-model", "ready", "apache-2.0")
    assert info.source == f"hub:{REPO}@{commit}"
    assert read_json(home.models / "small-model" / "afina.json")["source"] == info.source
    assert (home.models / "small-model" / "model.safetensors").read_bytes() == (
        published / "model.safetensors"
    ).read_bytes()
    assert not any(path.is_symlink() for path in (home.models / "small-model").rglob("*"))
    came = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/**/*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= came
    assert not came & {"pytorch_model.bin", "modeling_small.py", "consolidated.safetensors"}
    assert sorted(hub.asked) == sorted(came)
    assert [share for share, _ in said] == sorted(share for share, _ in said)
    assert any(0 < share <= 0.8 and words == "Downloading the model from the hub" for share, words in said)


def test_a_revision_is_pinned_to_its_commit(home: Home, hub: Hub, published: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(published, tmp_path / "older"))
    config = read_json(older / "config.json")
    (older / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    commit = hub.put(REPO, older, "v1.0", "refs/pr/1")
    for revision, name in (("v1.0", "tag"), (commit, "commit"), ("refs/pr/1", "request")):
        info = actions.add_model(home, f"hub:{REPO}@{revision}", name, lambda *_: None)
        assert (info.source, info.context_length) == (f"hub:{REPO}@{commit}", 77)
    missing = refused(home, f"hub:{REPO}@v2.0")
    assert (missing.code, missing.kind) == ("not_found", "not_found")
    assert f"{REPO}@v2.0" in str(missing)


def test_what_was_downloaded_is_not_downloaded_again(home: Home, hub: Hub, published: Path) -> None:
    hub.failing.add("model.safetensors")
    broken = refused(home, f"hub:{REPO}")
    assert (broken.code, broken.kind) == ("no_network", "unavailable")
    [model] = actions.list_models(home)
    assert (model.status, model.problem and model.problem.code) == ("broken", "no_network")
    assert "config.json" in hub.asked
    hub.failing.clear()
    hub.asked.clear()
    assert actions.add_model(home, f"hub:{REPO}", None, lambda *_: None).status == "ready"
    assert hub.asked == ["model.safetensors"]


def test_without_a_network_the_cache_is_read(
    home: Home, hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = actions.add_model(home, f"hub:{REPO}", None, lambda *_: None)
    reach("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    again = actions.add_model(home, f"hub:{REPO}", "again", lambda *_: None)
    assert again.source == first.source
    error = refused(home, "hub:someone/other")
    assert (error.code, error.kind) == ("no_network", "unavailable")
    assert "is not on this machine, and the hub cannot be reached" in str(error)
    taken = refused(home, f"hub:{REPO}")
    assert (taken.code, taken.kind) == ("model_exists", "conflict")
    assert sorted(path.name for path in home.models.iterdir()) == ["again", "small-model"]


def test_what_the_hub_does_not_have_or_shows_to_nobody(home: Home, hub: Hub, published: Path) -> None:
    error = refused(home, "hub:someone/nothing")
    assert (error.code, error.kind) == ("not_found", "not_found")
    assert "hf auth login" in str(error.problems[0].remedy)
    hub.gated.add(REPO)
    closed = refused(home, f"hub:{REPO}")
    assert (closed.code, closed.kind) == ("terms_not_accepted", "forbidden")
    for name in ("hub:", "hub:owner", "hub:../../etc", "hub:a/b/c", "hub:owner/name@", "hub:owner/name@../x"):
        assert refused(home, name).code == "bad_name"
    assert list(home.models.iterdir()) == []


FILES = ("config.json", "tokenizer.json")


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((*FILES, "pytorch_model.bin", "modeling.py"), "unsafe_weights"),
        (("README.md",), "not_a_model"),
        (("model.safetensors", "tokenizer.json"), "not_a_model"),
        (("config.json", "model.safetensors"), "no_tokenizer"),
        (("adapter_config.json", "adapter_model.safetensors"), "is_an_adapter"),
        (("a.Q4_K_M.gguf", "a.Q8_0.gguf", "config.json"), "several_gguf"),
    ],
)
def test_a_repository_without_a_model_for_us_is_refused_before_it_is_downloaded(
    home: Home, hub: Hub, tmp_path: Path, names: tuple[str, ...], code: str
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"{}")
    hub.put(REPO, folder)
    error = refused(home, f"hub:{REPO}")
    assert error.code == code
    assert error.problems[0].remedy is not None
    assert (REPO in str(error)) == (code != "unsafe_weights")
    assert "a.Q4_K_M.gguf, a.Q8_0.gguf" in str(error) or code != "several_gguf"
    assert hub.asked == []
    assert actions.list_models(home) == []


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((*FILES, "model.safetensors", "model.gguf", "x.bin"), [*FILES[:1], "model.safetensors", *FILES[1:]]),
        (("one.gguf", "config.json", "README.md", "LICENSE"), ["LICENSE", "README.md", "one.gguf"]),
        (
            (*FILES, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.py"),
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"],
        ),
    ],
)
def test_what_is_fetched(names: tuple[str, ...], chosen: list[str]) -> None:
    assert model_hub.choose(REPO, list(names)) == chosen


def test_an_incomplete_model_is_refused_by_the_same_checks(home: Home, hub: Hub, published: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.put(REPO, published)
    assert refused(home, f"hub:{REPO}").code == "broken_weights"


def test_only_a_download_may_use_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert compute_environment()["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in compute_environment(network=True)


def test_it_is_listed_while_it_comes(home: Home, hub: Hub, published: Path) -> None:
    info: ModelInfo = actions.add_model(home, f"hub:{REPO}")
    assert (info.name, info.status) == ("small-model", "adding")
    assert info.source == f"hub:{REPO}@{hub.names[f'{REPO}@main']}"
    actions.delete_model(home, "small-model")
    assert actions.list_models(home) == []


def test_a_download_that_was_stopped_goes_on_where_it_was(
    home: Home, hub: Hub, published: Path, tmp_path: Path
) -> None:
    weights = published / "model.safetensors"
    tensors = {**load_file(weights), "extra": torch.zeros(12 << 20, dtype=torch.int8)}
    save_file(tensors, weights, {"format": "pt"})
    hub.put(REPO, published)
    hub.halting["model.safetensors"] = 11 << 20
    actions.add_model(home, f"hub:{REPO}")
    cache = tmp_path / "cache"
    helpers.until(lambda: any(part.stat().st_size == 10 << 20 for part in cache.rglob("*.afina")))
    assert (actions.get_model(home, "small-model").progress or 0) > 0.5
    actions.delete_model(home, "small-model")
    hub.halting.clear()
    actions.add_model(home, f"hub:{REPO}", None, lambda *_: None)
    assert [start for name, start in hub.starts if name == "model.safetensors"] == [0, 10 << 20]
    assert (home.models / "small-model" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_the_one_gguf_file_of_a_repository_is_converted(home: Home, hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    gguf.write(tiny_model, folder / "tiny-f32.gguf")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    commit = hub.put(REPO, folder)
    info = actions.add_model(home, f"hub:{REPO}", None, lambda *_: None)
    assert (info.status, info.architecture, info.licence) == ("ready", "LlamaForCausalLM", "mit")
    assert info.source == f"hub:{REPO}@{commit}"
    assert sorted(hub.asked) == ["README.md", "tiny-f32.gguf"]


def test_a_model_that_cannot_be_trained_is_refused_before_its_weights_come(
    home: Home, hub: Hub, published: Path
) -> None:
    config = read_json(published / "config.json")
    (published / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    hub.put(REPO, published)
    assert refused(home, f"hub:{REPO}").code == "quantised_weights"
    assert hub.asked == ["config.json"]


def test_a_download_that_finds_no_room_is_not_begun(hub: Hub, published: Path, tmp_path: Path) -> None:
    listing = model_hub.look(model_hub.Reference.parse(f"hub:{REPO}"))
    too_large = model_hub.Listing(listing.reference, {"model.safetensors": 1 << 60})
    with pytest.raises(AfinaError) as caught:
        model_hub.fetch(too_large, lambda share: None)
    assert (caught.value.code, caught.value.kind) == ("no_space", "failed")
    assert hub.asked == []
