"""What comes along with PyTorch and is of no use to a process that computes on the processor: its compiler, and its parts for
several machines. transformers and PyTorch's optimizers import both, which takes one to two seconds.

Nothing is taken away for good: whoever asks the compiler for anything gets it, whole.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
NEEDED = f"{COMPILER}._trace_wrapped_higher_order_op"
"""What transformers' masks take from inside of it."""


def leave_out(device: torch.device) -> None:
    """Do without both in this process where `device` is the processor. Before transformers is imported: what is imported stays."""
    if device.type != "cpu":
        return
    # as in a PyTorch that was built without it (macOS and Windows have had such)
    torch.distributed.is_available = lambda: False
    found = find_spec(COMPILER) if COMPILER not in sys.modules else None
    if found is None:
        return
    module = module_from_spec(found)
    sys.modules[COMPILER] = torch._dynamo = module
    with suppress(ImportError):  # where it has another name
        import_module(NEEDED)
    del module.__path__  # who imports another part of it asks for this first
    module.__class__ = _Unread


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    """`function` as it is: how it is to be compiled does not matter where nothing is compiled."""
    return (lambda given: given) if function is None else function


class _Unread(ModuleType):
    """The compiler, found but not run before it is asked for more than marks."""

    disable = allow_in_graph = assume_constant_result = graph_break = staticmethod(_mark)

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec is None or spec.loader is None or (name.startswith("__") and name != "__path__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on as any other
        self.__path__ = list(spec.submodule_search_locations or ())
        spec.loader.exec_module(self)
        return getattr(self, name)
