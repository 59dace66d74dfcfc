"""The precisions of an exported file, and the one way from a float32 file to another precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from purifier.data.images import ImageData
from purifier.errors import ConfigError, ExportError
from purifier.guards.guard import Guard
from purifier.onnx.metadata import add_metadata

from ._half import in_half_precision
from ._judging import in_parts
from ._quantised import quantised
from ._verify import Candidate, Verifier

Precision = Literal["fp32", "fp16", "int8"]
TOLERANCE: Mapping[str, float] = {"fp16": 0.05, "int8": 10.0}
"""Limits on the largest relative difference from the guard. That of int8 only finds what is broken: its images are
judged by their classes."""
AGREEMENT: Mapping[str, float] = {"fp32": 0.99, "fp16": 0.99, "int8": 0.95}
"""The share of images that a file must answer as the guard does."""
LEAST, MOST = 32, 128
"""Images to calibrate on: half of those that are given, within these."""


def calibration_places(data: ImageData | None, precision: Precision) -> list[int]:
    """The images to calibrate on, evenly spaced; the others are judged, in every precision, to compare them.

    Raises
    ------
    ConfigError
        There are none, or too few.
    """
    half = 0 if data is None else len(data) // 2
    if data is not None and half >= LEAST:
        return data.spread(min(MOST, half))
    if precision == "int8":
        raise ConfigError(
            f"precision='int8' needs data= (--data) with {2 * LEAST} images or more, to calibrate on half of them and "
            f"judge the file on the others, got {'none' if data is None else len(data)}; give more, or use fp16, which "
            "needs none"
        )
    return []


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How a verified float32 file becomes one of another precision.

    Parameters
    ----------
    calibration, judged
        Positions in ``data``.
    batch
        The batch size, if it is fixed.
    """

    precision: Precision
    guard: Guard
    data: ImageData | None
    calibration: Sequence[int]
    judged: Sequence[int]
    batch: int | None

    def apply(self, file: Path, verifier: Verifier, *, large: bool) -> Candidate:
        """The candidate for ``file``, which ``verifier`` has found right, in this precision.

        Raises
        ------
        ExportError
            It cannot be converted.
        """
        candidate = verifier.candidate
        if self.precision == "fp16":
            model = in_half_precision(file, verifier.path)
        else:
            model = quantised(file, verifier.path, self._feeds(verifier), large=large)
            candidate = dataclasses.replace(candidate, images=self._real_images)
        add_metadata(model, {"purifier.precision": self.precision})
        return dataclasses.replace(candidate, model=model, tap=None)

    def _feeds(self, verifier: Verifier) -> Iterator[Mapping[str, Any]]:
        for part in in_parts(self.calibration, self.batch):
            images = self._images(part)
            noise = verifier.candidate.noise
            yield verifier.feeds(images, None if noise is None else noise(images))

    def _real_images(self, count: int) -> Tensor:
        """A batch of images that were not calibrated on: random ones are out of the range of 8 bits."""
        return self._images([self.judged[place % len(self.judged)] for place in range(count)])

    def _images(self, places: Sequence[int]) -> Tensor:
        assert self.data is not None
        return self.guard.preprocessing.to_classifier(self.data.batch(places)[0])


def explained_difference(error: ExportError, precision: Precision, path: Path) -> ExportError:
    """The error for a file whose answers differ from the guard's because of its precision."""
    why = {
        "fp16": "values may be above 65504, where float16 ends, or steps too small for it; use fp32",
        "int8": "8 bits do not hold what it computes; use fp16 or fp32",
    }
    return ExportError(f"{path}: the guard does not survive {precision}: {why[precision]} ({error})", path)
