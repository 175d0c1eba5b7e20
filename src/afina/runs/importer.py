"""The child that adds a model: `python -m afina.runs.importer SOURCE [DESTINATION [ORIGIN]]`.

Without DESTINATION only the config of the folder SOURCE is looked at. ORIGIN is what the model's notes name as its source, where SOURCE is only a copy of it, as with a model of the hub.

Prints one JSON object a line: `{"progress": 0..1, "message": "…", "phase": {text, template, values}}`, and at the end
`{"done": true}`, or the one error shape `{"error": {…}}` with exit status 2 (wrong input) or 1.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, Message, say

WRONG_INPUT = ("wrong_input", "not_found")


def main(arguments: list[str] | None = None) -> int:
    """Convert, reporting progress; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) not in (1, 2, 3):
        _print(
            {
                "error": {
                    "code": "usage",
                    "kind": "wrong_input",
                    "message": "SOURCE [DESTINATION [ORIGIN]]",
                    "problems": [],
                }
            }
        )
        return 2
    os.environ["TQDM_DISABLE"] = "1"  # progress is told in our own lines
    try:
        _work(Path(given[0]), *given[1:])
    except AfinaError as error:
        _print(error.as_json())
        return 2 if error.kind in WRONG_INPUT else 1
    except (MemoryError, RuntimeError) as error:
        from afina.engine.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = say(N_("Close other programs, or take a smaller model."))
        failure = Problem("out_of_memory", say(N_("There is not enough memory to convert this model.")), remedy)
        _print(AfinaError(failure, "failed").as_json())
        return 1
    _print({"done": True})
    return 0


def _work(source: Path, destination: str | None = None, origin: str | None = None) -> None:
    if destination is None:
        from afina.engine.folders import check_config

        check_config(source)
        return
    from afina.engine.convert import convert

    convert(source, Path(destination), _Reporter(), origin)


class _Reporter:
    """Prints progress when it has moved by a percent or the phase has changed."""

    def __init__(self) -> None:
        self._last = (-1, "")

    def __call__(self, share: float, message: Message) -> None:
        now = (int(share * 100), message.template)
        if now != self._last:
            self._last = now
            _print({"progress": round(share, 3), "message": str(message), "phase": message.as_json()})


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
