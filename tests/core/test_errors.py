"""Errors: a code, the value, the next step, in any language."""

from __future__ import annotations

from afina.core.errors import AfinaError, Problem
from afina.core.events import Advice, Answer, Sample
from afina.core.messages import N_, Message, say


def test_the_one_shape_of_an_error() -> None:
    first = Problem("a_code", say(N_("Row {row} is empty."), row=7), say(N_("Remove it.")), "output", {"odd": "value"})
    error = AfinaError([first, Problem("b_code", say(N_("Second.")))], "conflict")
    assert error.code == "a_code"
    assert error.as_json() == {
        "error": {
            "code": "a_code",
            "kind": "conflict",
            "message": "Row 7 is empty.",
            "problems": [
                {
                    "code": "a_code",
                    "field": "output",
                    "value": "{'odd': 'value'}",
                    "message": "Row 7 is empty.",
                    "remedy": "Remove it.",
                },
                {"code": "b_code", "field": None, "value": None, "message": "Second.", "remedy": None},
            ],
        }
    }


def test_a_translator_sees_the_template_not_the_values() -> None:
    message = say(N_("Row {row} is {what}."), row=7, what="{row}")
    assert (
        message.text(lambda text: text.replace("Row", "Linha"), lambda value: f"<{value}>") == "Linha <7> is <{row}>."
    )


def test_events_are_plain_objects() -> None:
    sample = Sample(step=0, when="before", answers=[Answer("q", "a")])
    assert sample.as_json() == {
        "type": "sample",
        "step": 0,
        "when": "before",
        "answers": [{"prompt": "q", "answer": "a", "expected": None}],
    }
    advice = Advice("overfitting", 9, Message("Up {n}.", {"n": 3}))
    assert advice.as_json()["message"] == {"text": "Up 3.", "template": "Up {n}.", "values": {"n": 3}}
