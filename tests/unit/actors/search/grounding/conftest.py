"""One tiny checkpoint for all tests of grounding."""

from __future__ import annotations

import pytest

from tests.unit.actors.search.grounding.tiny_dino import save_tiny_dino


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_dino(tmp_path_factory.mktemp("dino"))
