"""Export to one ONNX file, which is run and compared with the guard before it appears at its path."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from purifier.attacking.threat import Threat
from purifier.data.given import read_data
from purifier.errors import ConfigError, ExportError
from purifier.guards.exporter import Exporter, ExportReport
from purifier.guards.guard import Guard
from purifier.onnx.names import OPSET
from purifier.onnx.opset import opset_of
from purifier.rejection.policy import check_exportable
from purifier.vocabulary import Norm

from ._card import card_path, check_card, make_card, write_card
from ._draft import Draft, draft_of
from ._judging import Judging, check_images, judge
from ._options import check_batch, check_batches, check_judging, check_shape, check_tolerance
from ._precision import AGREEMENT, TOLERANCE, Conversion, Precision, calibration_places, explained_difference
from ._saving import saved, size_of
from ._verify import Candidate, Verifier

Noise = Literal["mean", "input"]


class OnnxExporter(Exporter):
    """Writes a guard to one ONNX file, and a card beside it."""

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
        precision: Precision = "fp32",
        batch: int | None = None,
        data: Any = None,
        min_agreement: float | None = None,
        norm: Norm = "linf",
        eps: float = 0.1,
        sample: int = 50,
    ) -> ExportReport:
        """Write ``path`` and run it in a plain ONNX Runtime session on the CPU against the guard.

        The reference for a torch guard is the guard itself in evaluation mode; for a guarded session, it is the
        purifier in torch followed by the original classifier. Outputs of a torch classifier are named ``logits`` (a
        tensor), ``output_0``, ``output_1``... (a tuple), or by their keys. ``purifier_score`` (N,) follows if the guard
        has it, then ``purifier_rejected``, bool (N,), if it flags images or has a score and a threshold. Guard and file
        may disagree about rejecting images that score within rounding of the threshold; the notes count those among
        the compared images.

        ``NAME.onnx.json`` beside the file is its card: size, SHA-256, opset, precision, inputs and outputs, latency,
        and with ``data`` how often it answers as the guard does, clean and under attack. Weights above 1.5 GB are in
        ``NAME.onnx.HASH.data``. The same guard and options give the same bytes.

        Parameters
        ----------
        image_shape
            (C, H, W) of the pixels; required if neither the purifier nor the classifier fixes it.
        opset
            From 18 to the newest that the installed onnx supports; an ONNX classifier keeps its own if that is higher.
        batches
            The batch sizes to run; a file with a fixed batch size runs only at that.
        tolerance
            Limit on the largest difference of the float32 file, divided by the largest value of the output if that is
            above 1; a few rounding errors are always allowed. For a torch guard on uint8 or float16 images it is at
            least 0.01; an ONNX classifier that rounds its input is compared separately from the purifier, on the same
            purified images.
        noise
            For a random purifier: ``mean`` exports it without noise; ``input`` adds a second input
            ``purifier_noise``, float32 (N, ...), for the result of its ``draw()``.
        precision
            ``fp32``; ``fp16``, whose inputs and outputs stay float32; or ``int8``, calibrated on half of ``data``, at
            most 128 images. The gradient steps of a purifier stay float32 in int8. The other images are judged,
            whatever the precision, so that files can be compared.
        batch
            Fix the batch size; by default it is free, unless the classifier's is fixed.
        data
            Images to judge the file on: anything that ``purifier.audit`` takes as data.
        min_agreement
            The share of ``data`` that must get the same class from file and guard; by default 0.99, and 0.95 for int8.
        norm
            In which norm the attack on the file itself, apgd-ce with 20 steps, measures ``eps``.
        eps
            The budget of that attack in pixel units.
        sample
            How many images are attacked.

        Raises
        ------
        ConfigError
            An option has an impossible value, or ``data`` does not fit.
        ExportError
            The guard cannot be exported, or the file does not reproduce it; no file is left.
        OutputError
            A file cannot be written, or another file is in the place of the card.
        """
        _check_options(image_shape, opset, batches, tolerance, noise, precision)
        check_batch(batch)
        check_judging(min_agreement, sample)
        threat = Threat(norm, eps)
        check_exportable(guard.rejection)
        target = Path(path)
        check_card(target)
        images = None if data is None else read_data(data, preprocessing=guard.preprocessing)
        calibration = calibration_places(images, precision)
        draft = draft_of(
            guard,
            target,
            shape=image_shape,
            opset=opset,
            as_input=noise == "input",
            batch=batch,
            batches=batches,
            tolerance=tolerance,
        )
        judging, judged = None, list[int]()
        if images is not None:
            check_images(images, guard, draft.candidate)
            judged = sorted({*range(len(images))} - {*calibration})
            least = AGREEMENT[precision] if min_agreement is None else min_agreement
            judging = Judging(images, judged, threat, sample, least)
        conversion = Conversion(precision, guard, images, calibration, judged, draft.batch)
        if precision == "fp32":
            return _write(draft, draft.candidate, draft.tolerance, target, conversion, judging)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, target.name)
            with saved(draft.candidate.model, file, target) as (written, weights):
                exact = Verifier(written, target, draft.candidate, draft.tolerance)
                for count in draft.batches:
                    exact.error_at(count)
            candidate = conversion.apply(file, exact, large=weights is not None)
        return _write(draft, candidate, max(draft.tolerance, TOLERANCE[precision]), target, conversion, judging)


def _write(
    draft: Draft, candidate: Candidate, tolerance: float, target: Path, conversion: Conversion, judging: Judging | None
) -> ExportReport:
    """Write a candidate and its card once it has been verified and judged."""
    precision = conversion.precision
    opset = opset_of(candidate.model)
    facts: dict[str, Any] = {"opset": opset, "precision": precision}
    if precision == "int8":
        assert conversion.data is not None
        facts["calibration"] = {"data": conversion.data.name, "images": len(conversion.calibration)}
    with saved(candidate.model, target, target) as (file, weights):
        try:
            verifier = Verifier(file, target, candidate, tolerance)
            errors = {count: verifier.error_at(count) for count in draft.batches}
        except ExportError as error:
            if precision == "fp32":
                raise
            raise explained_difference(error, precision, target) from error
        size = size_of(file, weights)
        judged = None if judging is None else judge(verifier, conversion.guard, judging, draft.batch, size)
        facts["max_error"] = {str(count): error for count, error in errors.items()}
        card = make_card(verifier, draft.batch, weights=weights, facts=facts, judged=judged)
        with suppress(FileNotFoundError):  # a card beside another file would be wrong, even for a moment
            card_path(target).unlink()
    write_card(target, card)
    notes = (*draft.notes, *verifier.notes())
    return ExportReport(target, "onnx", card["bytes"], opset, errors, notes, card)


def _check_options(shape: Any, opset: Any, batches: Any, tolerance: Any, noise: Any, precision: Any) -> None:
    newest = onnx.defs.onnx_opset_version()  # above this, torch silently writes opset 18
    check_shape(shape)
    if type(opset) is not int or not OPSET <= opset <= newest:
        raise ConfigError(f"opset: expected an integer from {OPSET} to {newest}, got {opset!r}")
    check_batches(batches)
    check_tolerance(tolerance)
    if noise not in get_args(Noise):
        raise ConfigError(f"noise: expected 'mean' or 'input', got {noise!r}")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
