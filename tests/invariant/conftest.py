"""Two-layer models of every family, built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of each family in turn."""
    family: str = request.param
    return tiny.build_model(tmp_path_factory.mktemp("families") / family, family)
