"""Many calls from many threads with bad images among them: the short version of ``tests/benchmarks/soak.py``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

CALLS = 1000


@pytest.fixture(autouse=True)
def one(one_thread: None) -> None:
    """The soak's own eight threads are enough."""


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import soak

    yield soak


@pytest.mark.integration
@pytest.mark.parametrize("way", ["reject", "raise"])
@pytest.mark.parametrize("kind", ["module", "session"])
def test_threads_get_the_answers_of_one_thread(kind: str, way: str, soak: ModuleType) -> None:
    found = soak.soaked(kind, way, CALLS)
    assert not found.examples
    assert found.counts["calls"] == CALLS and found.counts["bad calls"] > 20 and found.counts["wrong"] == 0


def test_the_soak_notices_wrong_answers(soak: ModuleType) -> None:
    images = torch.zeros((300, 3, 32, 32))
    wanted = np.zeros((300, 10)), np.zeros(300, dtype=bool)

    def spreading(given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """One bad image costs the batch."""
        bad = not bool(((given >= 0) & (given <= 1)).all())
        return wanted[0] + (np.nan if bad else 0), wanted[1] | bad

    def blind(given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Bad images get a class."""
        return wanted

    def ill_named(given: Tensor) -> tuple[np.ndarray, np.ndarray]:
        raise soak.PixelError("x: expected values in [0, 1], got NaN in image 299 of 300 (counted from 0)")

    for ask, way in ((spreading, "reject"), (blind, "reject"), (blind, "raise"), (ill_named, "raise")):
        found = soak.Found()
        soak.call(ask, way, images, wanted, random.Random(0), found)
        assert found.counts["bad images"] > 1 and found.counts["wrong"] == 1, ask
