"""What comes along with PyTorch and is of no use to a process that computes on the processor: its compiler, and its parts for
several machines. transformers and PyTorch's optimizers import both, which takes one to two seconds.

Nothing is taken away for good: whoever asks the compiler for anything gets it, whole.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from afina.engine import device as devices

COMPILER = "torch._dynamo"
NEEDED = f"{COMPILER}._trace_wrapped_higher_order_op"
"""What transformers' masks take from inside of it."""


def leave_out(device: torch.device) -> None:
    """Do without both in this process where `device` is the processor. Before transformers is imported: what is imported stays."""
    if device.type != "cpu":
        return
    devices.compute_alone()
    folder = Path(torch.__file__).with_name("_dynamo")
    spec = spec_from_file_location(COMPILER, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if COMPILER in sys.modules or spec is None or not folder.is_dir():
        return
    module = module_from_spec(spec)
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
