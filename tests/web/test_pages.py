"""The pages as a browser gets them: language, forms filled in from a run or an address, failures as pages."""

from __future__ import annotations

import shutil

import pytest
from starlette.testclient import TestClient

from afina import actions
from afina.core.parsing import parse_spec
from afina.core.paths import Home
from afina.core.spec import TrainSpec, about
from afina.web import form
from tests.web.conftest import add_pairs

HTML = {"Accept": "text/html"}


def test_every_setting_has_a_field_with_its_default() -> None:
    made = form.fields({})
    assert set(made) == {name for name in TrainSpec.model_fields if about(name).group != "what"}
    typed = {item.name: item.value for item in made.values() if item.value and item.kind != "lines"}
    spec = parse_spec({"model": "m", "dataset": "d", **typed})
    assert spec == parse_spec({"model": "m", "dataset": "d"}), "what stands in the form means the defaults"
    shown = {item.name for _, _, items in form.groups(made) for item in items} | {
        item.name for item in form.basic(made)
    }
    assert shown == set(made) - {"name"}


def test_values_are_written_as_people_type_them() -> None:
    made = form.fields(
        {"learning_rate": 2e-5, "tags": ["a", "b"], "sample_prompts": ["Who?", "Where, then?"], "epochs": 3.0}
    )
    assert [made[name].value for name in ("learning_rate", "tags", "sample_prompts", "epochs")] == [
        "0.00002",
        "a, b",
        "Who?\nWhere, then?",
        "3",
    ]
    assert made["batch_size"].whole
    assert made["batch_size"].required
    assert not made["max_steps"].required


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_api_is_found_at_its_usual_addresses_and_from_the_pages(client: TestClient, path: str) -> None:
    assert client.get(path, follow_redirects=False).headers["location"] == f"/api/v1{path}"
    assert client.get(path).status_code == 200
    assert 'href="/api/v1/docs"' in client.get("/runs", headers=HTML).text


def test_the_first_page_leads_to_training(client: TestClient) -> None:
    answer = client.get("/", headers=HTML, follow_redirects=False)
    assert answer.headers["location"] == "/training"


@pytest.mark.parametrize(
    ("next_", "where"),
    [("/runs", "/runs"), ("//evil.example", "/"), ("https://evil.example", "/"), ("/\\evil.example", "/")],
)
def test_a_language_is_remembered_and_leads_nowhere_else(client: TestClient, next_: str, where: str) -> None:
    answer = client.get("/language/tet", params={"next": next_}, headers=HTML, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == where
    assert "afina_language=tet" in answer.headers["set-cookie"]


def test_an_unknown_language_is_a_page_of_ours(client: TestClient) -> None:
    answer = client.get("/language/xx", headers=HTML)
    assert answer.status_code == 404
    assert "unknown_language" in answer.text


def test_the_browser_s_language_is_used(client: TestClient) -> None:
    page = client.get("/training", headers={**HTML, "Accept-Language": "pt-BR,pt;q=0.9"})
    assert '<html lang="pt">' in page.text


def test_a_theme_in_the_cookie_needs_no_script(client: TestClient) -> None:
    page = client.get("/runs", headers={**HTML, "Cookie": "afina_theme=dark"})
    assert 'data-theme="dark"' in page.text
    strange = client.get("/runs", headers={**HTML, "Cookie": 'afina_theme="><script>'})
    assert 'data-theme="' not in strange.text.split("<body>")[0]


def test_an_unknown_run_is_a_page_of_ours(client: TestClient) -> None:
    for path in ("/runs/nothing", "/training?run=nothing", "/training?from=nothing"):
        answer = client.get(path, headers=HTML)
        assert answer.status_code == 404, path
        assert "<h1>" in answer.text


def test_the_address_chooses_the_dataset(client: TestClient, with_model: Home) -> None:
    add_pairs(with_model, "few.json", 12)
    add_pairs(with_model, "many.json", 40)
    page = client.get("/training", headers=HTML)
    assert 'value="many.json" checked' in page.text, "the one with the most rows"
    assert 'value="few.json" checked' in client.get("/training?dataset=few.json", headers=HTML).text


def test_what_is_ticked_stands_first_and_a_new_base_model_does_not_push_in(
    client: TestClient, with_model: Home
) -> None:
    for name in ("a.json", "b.json", "z.json"):
        add_pairs(with_model, name, 12)
    shutil.copytree(with_model.models / "small", with_model.models / "a-new-one")
    page = client.get("/training?dataset=z.json", headers=HTML).text
    assert page.index('value="z.json" checked') < page.index('value="a.json"') < page.index('value="b.json"')
    actions.start_run(with_model, {"model": "small", "dataset": "a.json"})
    assert '<option value="small" selected' in client.get("/training", headers=HTML).text


def test_a_dataset_with_errors_leads_to_them_rather_than_to_training(client: TestClient, home: Home) -> None:
    assert 'id="add" hidden' in client.get("/datasets", headers=HTML).text, "the empty card has the same buttons"
    (home.datasets / "bad.json").write_text('[{"output": 3}]')
    client.get("/api/v1/datasets/bad.json")
    page = client.get("/datasets", headers=HTML).text
    assert 'id="add">' in page
    assert "Put it right" in page
    assert "Train with this" not in page


@pytest.mark.parametrize(
    ("path", "list_"),
    [("/runs/x", "/runs"), ("/models/x", "/models"), ("/datasets/x", "/datasets"), ("/x", "/training")],
)
def test_what_is_not_there_leads_to_the_list_of_what_is(client: TestClient, path: str, list_: str) -> None:
    page = client.get(path, headers=HTML).text
    assert f'class="button primary" href="{list_}"' in page
    assert "Try again" not in page.split("</section>")[-2], "nothing changes by asking again"
