"""Nothing is ever unpickled or run from data: no module of the product imports or calls what would do so. Read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_imports import MODULES

UNPICKLING = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "multiprocessing",  # its queues, pools and connections unpickle what they receive
    "shelve",
}
CALLS = {"eval", "exec", "__import__", "ProcessPoolExecutor"}
LOADS = {"torch.load", "np.load", "numpy.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"}


def called(tree: ast.AST) -> Iterator[str]:
    """The names of all that is called or imported by name, with their module where it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_can_unpickle(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not set(imported(tree)) & UNPICKLING
    assert not set(called(tree)) & (CALLS | LOADS)


def test_what_is_looked_for_is_found() -> None:
    tree = ast.parse("import pickle\nfrom concurrent.futures import ProcessPoolExecutor\ntorch.load(x)\neval('1')")
    assert set(imported(tree)) & UNPICKLING == {"pickle"}
    assert set(called(tree)) & (CALLS | LOADS) == {"ProcessPoolExecutor", "torch.load", "eval"}
