"""A cache of graphs for a test of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purifier.contracts.purifier import Purifier
from purifier.onnx import front_cache, loaded_code
from purifier.onnx.cache_folder import Shelf


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """An empty cache; source files that were just edited count as old."""
    monkeypatch.setenv("PURIFIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loaded_code, "STARTED", math.inf)
    found = front_cache.front_shelf()
    assert found is not None
    return found


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Purifier]:
    """The purifiers that were really exported, in order."""
    made: list[Purifier] = []
    real: Callable[..., Any] = front_cache.purifier_graph

    def counted(exported: Purifier, *args: Any, **options: Any) -> Any:
        made.append(exported)
        return real(exported, *args, **options)

    monkeypatch.setattr(front_cache, "purifier_graph", counted)
    return made
