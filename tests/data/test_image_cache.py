"""Images of a folder that are kept in memory: the same as those decoded again, and never more than the limit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from purifier.data.files import ImageFiles
from purifier.data.framing import Framing
from purifier.errors import DataError

COUNT, SIDE = 8, 16
FRAMING = Framing(SIDE, (SIDE, SIDE))
GREY, COLOUR = SIDE * SIDE, 3 * SIDE * SIDE


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Grey images and photos in turn, of many sizes, some large enough to be decoded at a part of their size."""
    noise = np.random.default_rng(0)
    made = [tmp_path / f"{place}.jpg" for place in range(COUNT)]
    for place, path in enumerate(made):
        values = noise.integers(0, 256, (20 + 30 * place, 40 + 25 * place, 3), dtype=np.uint8)
        Image.fromarray(values if place % 2 else values[..., 0]).save(path)
    return made


@pytest.mark.parametrize("mode", [None, "L", "RGB"])
@pytest.mark.parametrize("most", [1, COLOUR, 4 * COLOUR, 10**6])
def test_images_are_the_same_with_and_without_cache(paths: list[Path], mode: object, most: int) -> None:
    positions = torch.tensor([7, 0, 3, 3, 1, 2, 6, 5, 4])
    expected = ImageFiles(paths, mode, FRAMING, cache_bytes=0)[positions]
    files = ImageFiles(paths, mode, FRAMING, cache_bytes=most)
    assert torch.equal(files[positions], expected)
    assert torch.equal(files[positions], expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda files: pickle.loads(pickle.dumps(files))])  # noqa: S301  # its own
def test_files_can_be_copied_and_sent_to_other_processes(paths: list[Path], again: Callable[[Any], Any]) -> None:
    files = ImageFiles(paths, None, FRAMING)
    assert torch.equal(again(files)[torch.arange(COUNT)], files[torch.arange(COUNT)])


def test_what_is_kept_is_bounded(paths: list[Path]) -> None:
    for path in paths:
        Image.new("RGB", (50, 40), (10, 200, 30)).save(path)
    files = ImageFiles(paths, framing=FRAMING, cache_bytes=3 * COLOUR + GREY)
    for path in paths:
        path.unlink()
    served = []
    for place in range(COUNT):
        try:
            served.append(files[torch.tensor([place])])
        except DataError as error:
            assert "cannot read image" in str(error)
    assert len(served) == 3 and all(one.shape == (1, 3, SIDE, SIDE) for one in served)


def test_kept_images_do_not_share_memory_with_batches(paths: list[Path]) -> None:
    files = ImageFiles(paths, framing=FRAMING)
    first = files[torch.tensor([1])].clone()
    files[torch.tensor([1])].zero_()
    assert torch.equal(files[torch.tensor([1])], first)
