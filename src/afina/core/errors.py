"""Errors people can act on: a stable code, the offending value, the next step, all problems at once.

Knows nothing of HTTP or exit codes beyond the kind of the failure; `web` and `cli` map kinds to theirs. `unavailable` is
what is neither the caller's nor this program's fault and may work later: a network or a hub that does not answer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afina.core.messages import N_, Message, say

Kind = Literal["wrong_input", "not_found", "conflict", "forbidden", "unavailable", "failed"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    code: stable, snake_case, documented; field: the setting or column it concerns; value: what was found;
    remedy: what to do next.
    """

    code: str
    message: Message
    remedy: Message | None = None
    field: str | None = None
    value: Any = None

    def as_json(self, write: Callable[[Message], str] = str) -> dict[str, Any]:
        """A plain object with the sentences written out by `write` (English unless told otherwise)."""
        return {
            "code": self.code,
            "field": self.field,
            "value": self.value if isinstance(self.value, str | int | float | bool | None) else str(self.value),
            "message": write(self.message),
            "remedy": write(self.remedy) if self.remedy else None,
        }


class AfinaError(Exception):
    """A failure that is explained rather than traced. `problems` is never empty."""

    def __init__(self, problems: Problem | Sequence[Problem], kind: Kind = "wrong_input") -> None:
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        self.kind: Kind = kind
        super().__init__(" ".join(str(problem.message) for problem in self.problems))

    @property
    def code(self) -> str:
        """The code of the first problem."""
        return self.problems[0].code

    def as_json(self, write: Callable[[Message], str] = str) -> dict[str, Any]:
        """The one JSON shape of an error, in the API, the CLI and the event log."""
        problems = [problem.as_json(write) for problem in self.problems]
        return {
            "error": {"code": self.code, "kind": self.kind, "message": problems[0]["message"], "problems": problems}
        }


def from_system(error: OSError) -> AfinaError:
    """What the system refused while something was written: `no_disk_space`, `cannot_write`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem = Problem(
        "no_disk_space" if full else "cannot_write",
        say(N_("The disk is full."))
        if full
        else say(N_("The file cannot be written: {reason}."), reason=error.strerror or str(error)),
        say(N_("Free some space, for example by deleting old runs."))
        if full
        else say(N_("Look at the owner and the permissions of the home folder.")),
    )
    return AfinaError(problem, kind="failed")
