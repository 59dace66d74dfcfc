"""What is to be written, and how it is to be verified, before any file is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from purifier.contracts.purifier import usual_shape_of
from purifier.guards.guard import Guard
from purifier.guards.module import GuardedModule
from purifier.onnx.front import PurifierFront, draw_of
from purifier.onnx.metadata import add_metadata, purifier_metadata
from purifier.onnx.names import NOISE

from ._batch import with_fixed_batch
from ._candidates import Shape, from_module, from_session
from ._verify import COARSE_TOLERANCE, Candidate


@dataclasses.dataclass(frozen=True)
class Draft:
    """A float32 model, and how it is verified."""

    candidate: Candidate
    batches: Sequence[int]
    """The batch sizes to run."""
    batch: int | None
    """The batch size, if it is fixed."""
    tolerance: float
    notes: Sequence[str]


def draft_of(
    guard: Guard,
    path: Path,
    *,
    shape: Shape,
    opset: int,
    as_input: bool,
    batch: int | None,
    batches: Sequence[int],
    tolerance: float,
) -> Draft:
    """The draft of a guard; ``as_input`` makes a random purifier's noise an input.

    Raises
    ------
    ExportError
        The guard cannot be exported.
    """
    notes = []
    shape = shape or usual_shape_of(guard.purifier)
    if isinstance(guard, GuardedModule):
        candidate = from_module(guard, path, shape, opset, as_input)
        if guard.preprocessing.dtype not in ("float32", "float64"):
            tolerance = max(tolerance, COARSE_TOLERANCE)
            notes.append(f"images of {guard.preprocessing.dtype}: compared at a tolerance of {tolerance:g}")
    else:
        candidate = from_session(guard, path, shape, opset, as_input)
        fixed = guard.image.shape[0]
        if fixed is not None:
            notes.append(f"the classifier's batch size is fixed at {fixed}; only that size was run")
    if batch is not None:
        fixed_model = with_fixed_batch(candidate.model, (candidate.input, NOISE), batch, path)
        candidate = dataclasses.replace(candidate, model=fixed_model)
    elif not isinstance(guard, GuardedModule):
        batch = guard.image.shape[0]
    if as_input:
        notes.append("the purifier is random; the file takes its draw() as the input purifier_noise")
    elif _draws(guard, candidate):
        notes.append("the purifier is random; the file holds its mean, without noise")
    add_metadata(candidate.model, purifier_metadata(guard.purifier, guard.rejection, as_input))
    return Draft(candidate, batches if batch is None else (batch,), batch, tolerance, notes)


def _draws(guard: Guard, candidate: Candidate) -> bool:
    front = PurifierFront(guard.purifier, guard.preprocessing)
    return draw_of(guard.purifier, front.pixels(candidate.images(1))) is not None
