"""Models: what there is, by which names, from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home
from tests.runs import helpers


@pytest.fixture
def home(home: Home) -> Home:
    return helpers.furnish(home)


def test_a_base_model_is_described_without_loading_it(home: Home) -> None:
    [info] = actions.list_models(home)
    assert (info.id, info.kind, info.architecture, info.parameters) == ("small", "base", "LlamaForCausalLM", 2)
    assert (info.context_length, info.has_chat_template, info.status) == (128, True, "ready")


def test_a_folder_that_lacks_something_says_what(home: Home) -> None:
    (home.models / "small" / "tokenizer.json").unlink()
    (home.models / "empty").mkdir()
    (home.models / ".hidden").mkdir()
    empty, small = actions.list_models(home)
    assert small.status == empty.status == "broken"
    assert small.problem is not None
    assert "tokenizer.json" in small.problem.message
    with pytest.raises(AfinaError) as caught:
        actions.resolve_model(home, "small")
    assert caught.value.code == "model_incomplete"


def test_results_of_runs_are_models_with_a_line_of_descent(home: Home) -> None:
    first = helpers.finish(home, helpers.start(home, "first"))
    second = actions.start_run(home, {"model": first.id, "dataset": "numbers.json", "name": "second"})
    second = helpers.finish(home, second)
    base, tuned, parent = actions.list_models(home)
    assert [info.name for info in (base, tuned, parent)] == ["small", "second", "first"]
    assert (tuned.kind, tuned.parent, parent.parent, tuned.dataset) == ("lora", first.id, "small", ["numbers.json"])
    ref = actions.resolve_model(home, "second")
    assert (ref.folder, ref.adapters) == (home.models / "small", (Path(first.output or ""), Path(second.output or "")))
    with pytest.raises(AfinaError) as caught:
        actions.delete_model(home, "small")
    assert (caught.value.code, caught.value.kind) == ("model_in_use", "conflict")
    actions.delete_model(home, second.id)
    actions.delete_model(home, "first")
    actions.delete_model(home, "small")
    assert actions.list_models(home) == []


def test_a_result_is_a_model_as_soon_as_the_log_says_so(home: Home) -> None:
    run = helpers.start(home, "quick", steps=3)
    keeper = helpers.supervisor(home)
    keeper.tick()
    helpers.until(lambda: actions.get_run(home, run.id).status == "succeeded")  # nobody ticks: the row is behind
    assert [info.id for info in actions.list_models(home)] == ["small", run.id]
    assert actions.resolve_model(home, "quick").adapter is not None
    helpers.until(lambda: keeper.settled(run.id))


def test_a_run_without_a_result_is_no_model(home: Home) -> None:
    run = helpers.start(home, "waiting")
    with pytest.raises(AfinaError) as caught:
        actions.resolve_model(home, run.id)
    assert caught.value.code == "model_not_ready"
    assert [info.id for info in actions.list_models(home)] == ["small"]


def test_unknown_models_are_not_found(home: Home) -> None:
    for ref in ("nobody", "starter", "../small", "", str(home.models / "small")):
        with pytest.raises(AfinaError) as caught:
            actions.resolve_model(home, ref)
        assert caught.value.code == "model_not_found"


def test_a_folder_is_added_in_a_process_of_its_own(home: Home, tiny_model: Path) -> None:
    told: list[float] = []
    info = actions.add_model(home, str(tiny_model), "mine", lambda share, _: told.append(share))
    assert (info.id, info.status, info.architecture) == ("mine", "ready", "LlamaForCausalLM")
    assert told == sorted(told)
    assert actions.resolve_model(home, "mine").folder == home.models / "mine"
    with pytest.raises(AfinaError) as caught:
        actions.add_model(home, str(tiny_model), "mine")
    assert (caught.value.code, caught.value.kind) == ("model_exists", "conflict")


def test_adding_shows_in_the_list_until_it_is_done(home: Home, tiny_model: Path) -> None:
    assert actions.add_model(home, str(tiny_model), "mine").status == "adding"
    assert [info.status for info in actions.list_models(home) if info.id == "mine"] == ["adding"]
    helpers.until(lambda: actions.get_model(home, "mine").status != "adding", timeout=60)
    assert actions.get_model(home, "mine").status == "ready"


def test_a_source_that_is_no_model_is_explained_and_can_be_forgotten(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "nothing in it"
    folder.mkdir()
    with pytest.raises(AfinaError):
        actions.add_model(home, str(folder), "odd", lambda *_: None)
    [odd] = [info for info in actions.list_models(home) if info.id == "odd"]
    assert odd.status == "broken"
    assert odd.problem is not None
    assert odd.problem.message
    actions.delete_model(home, "odd")
    assert [info.id for info in actions.list_models(home)] == ["small"]
    for source, code in (
        ("/no/such/place", "source_not_found"),
        (str(home.datasets / "numbers.json"), "source_unknown"),
    ):
        with pytest.raises(AfinaError) as caught:
            actions.add_model(home, source)
        assert caught.value.code == code
