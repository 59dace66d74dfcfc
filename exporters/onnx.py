"""Export to one ONNX file, which is run and compared with the guard before it appears at its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from onnx import ModelProto

from purifier.atomic import atomic_path
from purifier.contracts.purifier import usual_shape_of
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporter import Exporter, ExportReport
from purifier.guards.guard import Guard
from purifier.guards.module import GuardedModule
from purifier.onnx.front import PurifierFront, draw_of
from purifier.onnx.limits import MAX_BYTES
from purifier.onnx.metadata import add_metadata, purifier_metadata
from purifier.onnx.names import OPSET
from purifier.onnx.opset import opset_of
from purifier.rejection.policy import check_exportable

from ._candidates import from_module, from_session, too_large
from ._options import check_batches, check_shape, check_tolerance
from ._verify import COARSE_TOLERANCE, Candidate, Verifier

Noise = Literal["mean", "input"]


class OnnxExporter(Exporter):
    """Writes a guard to one ONNX file with a free batch size."""

    def export(  # type: ignore[override]  # the base class takes any **options, here they are named
        self,
        guard: Guard,
        path: str | Path,
        *,
        image_shape: tuple[int, int, int] | None = None,
        opset: int = OPSET,
        batches: Sequence[int] = (1, 2, 7),
        tolerance: float = 1e-4,
        noise: Noise = "mean",
    ) -> ExportReport:
        """Write ``path`` and run it in a plain ONNX Runtime session on the CPU against the guard.

        The reference for a torch guard is the guard itself in evaluation mode; for a guarded session, it is the
        purifier in torch followed by the original classifier. Outputs of a torch classifier are named ``logits`` (a
        tensor), ``output_0``, ``output_1``... (a tuple), or by their keys. ``purifier_score`` (N,) follows if the guard
        has it, then ``purifier_rejected``, bool (N,), if it flags images or has a score and a threshold. Guard and file
        may disagree about rejecting images that score within rounding of the threshold; the notes count those among
        the compared images.

        Parameters
        ----------
        image_shape
            (C, H, W) of the pixels; required if neither the purifier nor the classifier fixes it.
        opset
            From 18 to the newest that the installed onnx supports; an ONNX classifier keeps its own if that is higher.
        batches
            The batch sizes to run; a classifier with a fixed batch size runs only at that.
        tolerance
            Limit on the largest difference, divided by the largest value of the output if that is above 1. For a
            torch guard on uint8 or float16 images it is at least 0.01; an ONNX classifier that rounds its input is
            compared separately from the purifier, on the same purified images.
        noise
            For a random purifier: ``mean`` exports it without noise; ``input`` adds a second input
            ``purifier_noise``, float32 (N, ...), for the result of its ``draw()``.

        Raises
        ------
        ConfigError
            An option has an impossible value.
        ExportError
            The guard cannot be exported, or the file does not reproduce it; no file is left.
        """
        _check_options(image_shape, opset, batches, tolerance, noise)
        check_exportable(guard.rejection)
        target, as_input, notes = Path(path), noise == "input", []
        shape = image_shape or usual_shape_of(guard.purifier)
        if isinstance(guard, GuardedModule):
            candidate = from_module(guard, target, shape, opset, as_input)
            if guard.preprocessing.dtype not in ("float32", "float64"):
                tolerance = max(tolerance, COARSE_TOLERANCE)
                notes.append(f"images of {guard.preprocessing.dtype}: compared at a tolerance of {tolerance:g}")
        else:
            candidate = from_session(guard, target, shape, opset, as_input)
            if guard.image.shape[0] is not None:
                batches = (guard.image.shape[0],)
                notes.append(f"the classifier's batch size is fixed at {batches[0]}; only that size was run")
        if as_input:
            notes.append("the purifier is random; the file takes its draw() as the input purifier_noise")
        elif _draws(guard, candidate):
            notes.append("the purifier is random; the file holds its mean, without noise")
        add_metadata(candidate.model, purifier_metadata(guard.purifier, guard.rejection, as_input))
        _check_model(candidate.model, target)
        with atomic_path(path) as temporary:
            temporary.write_bytes(candidate.model.SerializeToString())
            verifier = Verifier(temporary, target, candidate, tolerance)
            errors = {count: verifier.error_at(count) for count in batches}
            size = temporary.stat().st_size
        return ExportReport(target, "onnx", size, opset_of(candidate.model), errors, (*notes, *verifier.notes()))


def _draws(guard: Guard, candidate: Candidate) -> bool:
    front = PurifierFront(guard.purifier, guard.preprocessing)
    return draw_of(guard.purifier, front.pixels(candidate.images(1))) is not None


def _check_options(shape: Any, opset: Any, batches: Any, tolerance: Any, noise: Any) -> None:
    newest = onnx.defs.onnx_opset_version()  # above this, torch silently writes opset 18
    check_shape(shape)
    if type(opset) is not int or not OPSET <= opset <= newest:
        raise ConfigError(f"opset: expected an integer from {OPSET} to {newest}, got {opset!r}")
    check_batches(batches)
    check_tolerance(tolerance)
    if noise not in get_args(Noise):
        raise ConfigError(f"noise: expected 'mean' or 'input', got {noise!r}")


def _check_model(model: ModelProto, path: Path) -> None:
    if model.ByteSize() > MAX_BYTES:
        raise too_large(path, model.ByteSize())
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: the guarded graph fails onnx's checker: {error}", path) from error
