"""Image files that stay on the disk and are decoded batch by batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DataError
from .decoding import Facts, Mode, decode
from .framing import Framing, Size

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_WORKERS = 16
CACHE_BYTES = 512 * 2**20
"""How much of a folder's images is kept in memory: 3,500 images of 224x224 in colour, 43,000 of 64x64."""
NAMED = 10
"""How many broken files an error names."""
T = TypeVar("T")
R = TypeVar("R")


class ImageFiles:
    """Image files, decoded on access by several threads: ``files[positions]`` is uint8, (n, C, H, W).

    Every file is decoded once when this is made, so that a broken one is found before hours of work, not in the midst
    of them. Framed images are kept in memory, up to ``cache_bytes`` of them; the others are decoded again whenever they
    are needed, to the same values. All are converted to ``mode``; by default to grey if all are grey, otherwise to
    colour.

    Raises
    ------
    DataError
        Files cannot be read (unless ``skip_bad``), or do not have one size after ``framing``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        mode: Mode | None = None,
        framing: Framing | None = None,
        *,
        skip_bad: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.framing = framing or Framing()
        cache = _Cache(cache_bytes)
        found = in_workers(lambda path: self._examine(path, mode, cache), paths)
        self._cached = cache.kept
        bad = [error for error in found if isinstance(error, DataError)]
        if bad and (not skip_bad or len(bad) == len(found)):
            raise _broken(bad, len(found))
        good = [(place, facts) for place, facts in enumerate(found) if isinstance(facts, Facts)]
        self.kept = [place for place, _ in good]
        """The positions in ``paths`` of the images that can be read."""
        self.skipped = tuple(error.path for error in bad)
        self.paths = tuple(paths[place] for place in self.kept)
        self.mode = mode or ("L" if all(facts.grey for _, facts in good) else "RGB")
        width, height = self._one_size([facts.size for _, facts in good])
        self.shape = (len(self.paths), 1 if self.mode == "L" else 3, height, width)

    def _examine(self, path: Path, mode: Mode | None, cache: _Cache) -> Facts | DataError:
        """Decode a file completely, so that a damaged one is found now; the error is returned."""
        try:
            image, facts = decode(path, mode, self.framing)
        except DataError as error:
            return error
        cache.keep(path, image)
        return facts

    def _one_size(self, sizes: Sequence[Size]) -> Size:
        for path, size in zip(self.paths, sizes, strict=True):
            if not self.framing.covers(size):
                crop = self.framing.crop
                assert crop is not None
                raise DataError(
                    f"expected images of at least {crop[1]}x{crop[0]} to crop, got {path} of "
                    f"{_size_text(self.framing.resized(size))} (width x height); enlarge them with "
                    "resize=, or crop less",
                    path,
                )
        framed = [self.framing.framed(size) for size in sizes]
        for path, size in zip(self.paths, framed, strict=True):
            if size != framed[0]:
                resized = " after resizing; also give crop=" if self.framing.resize else "; give resize= and crop="
                raise DataError(
                    f"expected images of one size, got {self.paths[0]} of {_size_text(framed[0])} and {path} of "
                    f"{_size_text(size)} (width x height){resized}, such as --resize 256 --crop 224",
                    path,
                )
        return framed[0]

    def __getitem__(self, positions: Tensor) -> Tensor:
        out = torch.empty((len(positions), *self.shape[1:]), dtype=torch.uint8)

        def read(row: int, position: int) -> None:
            path = self.paths[position]
            decoded = self._cached.get(path)
            if decoded is None:
                image, _ = decode(path, self.mode, self.framing)
                if image.size != (self.shape[3], self.shape[2]):
                    raise DataError(f"{path} has changed since it was first read; start again", path)
                decoded = np.array(image)
            # Grey images that were kept become colour here, in every channel the same.
            out[row].copy_(torch.from_numpy(decoded).view(*self.shape[2:], -1).permute(2, 0, 1))

        jobs = list(enumerate(positions.tolist()))
        if all(self.paths[position] in self._cached for _, position in jobs):
            for job in jobs:  # copies are quicker than threads
                read(*job)
        else:
            in_workers(lambda job: read(*job), jobs)
        return out


class _Cache:
    """Images by path, (H, W) or (H, W, 3) of uint8, of at most ``most`` bytes; filled by several threads."""

    def __init__(self, most: int) -> None:
        self.kept: dict[Path, NDArray[np.uint8]] = {}
        self._left = most
        self._lock = threading.Lock()

    def keep(self, path: Path, image: Image.Image) -> None:
        """Keep an image if there is room."""
        size = image.width * image.height * len(image.getbands())
        with self._lock:
            if path in self.kept or size > self._left:
                return
            self._left -= size
            self.kept[path] = np.array(image)


def in_workers(work: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    """``work`` on each job, in threads: Pillow decodes and resizes without holding the interpreter's lock."""
    workers = min(len(jobs), MOST_WORKERS, os.cpu_count() or 1)
    if workers < 2:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, jobs))


def _broken(bad: Sequence[DataError], count: int) -> DataError:
    if len(bad) == 1:
        return bad[0]
    named = _listed(str(error).split("; ")[0] for error in bad[:NAMED])
    more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    advice = "give a folder of images" if len(bad) == count else "leave them out with skip_bad=True (--skip-bad)"
    return DataError(
        f"{len(bad)} of {count} images cannot be read: {named}{more}; fix or remove them, or {advice}", bad[0].path
    )


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(text.removeprefix("cannot read image ") for text in texts)


def _size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
