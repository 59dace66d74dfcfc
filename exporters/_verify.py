"""Running an exported file against the guard it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnx import ModelProto
from torch import Tensor

from purifier.errors import ExportError
from purifier.runtime import CPU, open_session

Array: TypeAlias = np.ndarray[Any, Any]
Outputs: TypeAlias = Mapping[str, Any]

NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Candidate:
    """A model to be verified, and what it must reproduce."""

    model: ModelProto
    input: str
    images: Callable[[int], Tensor]
    """Batch size -> random images in the classifier's format."""
    reference: Callable[[Tensor], Outputs]
    """Images -> the guard's outputs by name, in order."""


def verify(
    file: Path, path: Path, candidate: Candidate, *, batches: Sequence[int], tolerance: float
) -> dict[int, float]:
    """Batch size -> the largest relative error of ``file``; errors call it ``path``.

    Raises
    ------
    ExportError
        The file does not run at a batch size, its outputs have other names or shapes, differ by more than
        ``tolerance``, or choose another class.
    """
    session = open_session(file, providers=[CPU])
    names = [output.name for output in session.get_outputs()]
    errors = {}
    for count in batches:
        batch = candidate.images(count)
        expected = candidate.reference(batch)
        if names != list(expected):
            raise ExportError(f"{path}: expected the outputs {list(expected)}, the file has {names}", path)
        feed = {**other_inputs(session, candidate.input, count), candidate.input: batch.numpy()}
        try:
            found = session.run(None, feed)
        except Exception as error:
            raise ExportError(
                f"{path}: the file does not run at batch {count} (a batch size baked in?): {error}", path
            ) from error
        errors[count] = max(
            _compare(value, expected[name], path, f"batch {count}, output {name!r}", tolerance)
            for name, value in zip(names, found, strict=True)
        )
    return errors


def other_inputs(session: onnxruntime.InferenceSession, image: str, count: int) -> dict[str, Array]:
    """Zeros for the inputs that take no images; a free first size is the batch, other free sizes are 1."""
    feed: dict[str, Array] = {}
    for value in session.get_inputs():
        if value.name != image:
            sizes = [size if isinstance(size, int) else 1 for size in value.shape]
            if value.shape and not isinstance(value.shape[0], int):
                sizes[0] = count
            feed[value.name] = np.zeros(sizes, dtype=NUMPY_TYPES[value.type])
    return feed


def _compare(found: Any, expected: Any, path: Path, where: str, tolerance: float) -> float:
    """The largest difference, relative to the output's scale where that is above 1."""
    got, wanted = np.asarray(found), np.asarray(expected)
    if got.shape != wanted.shape:
        raise ExportError(f"{path}: {where}: expected shape {wanted.shape}, got {got.shape}", path)
    if not np.issubdtype(wanted.dtype, np.number) or wanted.size == 0:
        if not np.array_equal(got, wanted):
            raise ExportError(f"{path}: {where}: expected {wanted!r}, got {got!r}", path)
        return 0.0
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    scale = max(1.0, float(np.abs(wanted).max()))
    error = float(np.abs(got - wanted).max()) / scale
    if not error <= tolerance:  # NaN too
        raise ExportError(
            f"{path}: {where}: differs from the guard by {error:.3g} of its scale, the tolerance is "
            f"{tolerance:g}; "
            "the file was not written",
            path,
        )
    if wanted.ndim == 2:
        chosen = np.take_along_axis(wanted, got.argmax(1)[:, None], axis=1)[:, 0]
        # Classes as near to each other as the tolerance may change places.
        if (wanted.max(1) - chosen > 2 * tolerance * scale).any():
            raise ExportError(f"{path}: {where}: chooses other classes than the guard", path)
    return error
