"""How a system under measurement is spoken to. Standard library only: it also runs in the peers' environments.

The process is given the path of a JSON file of settings. It loads, says `{"ready": …}`, and waits. Each line it reads is a
number of steps to take (0: end); for each step it answers `{"step", "seconds", "tokens", "loss"}`, at the end
`{"end": …, "peak_memory": bytes}`. So two systems can be loaded at once and take turns, the other one sleeping.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


class Turns:
    """The child's side. Whatever libraries print goes to the error output."""

    def __init__(self) -> None:
        with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - peers' Pythons, kept plain
            self.settings: dict[str, Any] = json.load(file)
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._left = 0
        self._began = False

    def wait(self) -> bool:
        """To be called before every step: returns when the step may begin; False when there are to be no more."""
        if not self._began:
            self.say(ready=True)
            self._began = True
        while self._left == 0:
            line = sys.stdin.readline().strip()
            if line in ("", "0"):
                return False
            self._left = int(line)
        self._left -= 1
        return True

    def say(self, **fields: Any) -> None:
        """One line for the parent."""
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()

    def end(self) -> None:
        """The last word; leaves without tidying up."""
        self.say(end=True, peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        os._exit(0)
