"""Compare an exported file with the guard it was made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, ValueInfoProto
from torch import Tensor

from purifier.errors import ClassifierError, ExportError
from purifier.foreign_code import explained
from purifier.onnx.feeding import NOTHING, Feed, example_values
from purifier.onnx.names import NOISE, REJECTED, SCORE
from purifier.onnx.opset import opset_of
from purifier.onnx.runtime import CPU, open_session
from purifier.onnx.torch_export import innermost_cause

Array: TypeAlias = np.ndarray[Any, Any]
Outputs: TypeAlias = Mapping[str, Any]

SIZE_ADVICE = "if their size is wrong, give image_shape=(C, H, W) (--image-shape 3x32x32 on the command line)"
COARSE_TOLERANCE = 1e-2
"""For images of less than 32 bits: a difference of 1e-7 before rounding can change a pixel by one step."""
LOOSE_TOLERANCE = 5e-2
"""For a classifier that rounds and runs twice with different kernels: a few values may round to another step."""


@dataclass(frozen=True)
class Candidate:
    """A model to verify, and what it must reproduce."""

    model: ModelProto
    input: str
    images: Callable[[int], Tensor]
    """Batch size -> random images in the classifier's format."""
    reference: Callable[[Tensor, Tensor | None, Array | None], Expected]
    """Images and noise -> the guard's outputs. If purified images are given, the classifier gets them, and those that
    the guard computes itself come last, named ``tap``."""
    tap: str | None = None
    """The value in the model that holds the purified images, if the reference can start from it."""
    noise: Callable[[Tensor], Tensor] | None = None
    """Images -> the value for the input ``purifier_noise``, if the model has it."""
    threshold: float | None = None
    """The score above which images are rejected, if outputs depend on it."""
    replaced: Collection[str] = ()
    """The outputs whose rows are other ones for rejected images."""
    feed: Feed = NOTHING
    """Values for the classifier's other inputs; those that it lacks are made up."""
    answer: str = ""
    """The name of the output that is the classifier's answer; empty if none can be."""


@dataclass(frozen=True)
class Expected:
    """A guard's results for a batch: outputs by name, in order, and the scores (N,), if any, even if not an output."""

    outputs: Outputs
    score: Array | None = None


class Verifier:
    """Runs a file on the CPU and compares it with its guard; errors call it ``path``."""

    def __init__(self, file: Path, path: Path, candidate: Candidate, tolerance: float) -> None:
        self.path, self.candidate, self.tolerance = path, candidate, tolerance
        self.compared_separately = False
        """Whether purifier and classifier had to be compared separately."""
        self._borderline, self._seen = 0, set[bool]()
        self._not_answers = (SCORE, REJECTED, candidate.input)
        self._count, self._varies = 0, False
        self.file = file
        try:
            self.session = open_quietly(file)
        except ClassifierError as error:
            cause = innermost_cause(error).replace(file.name, path.name)
            double = any(
                value.type.tensor_type.elem_type == TensorProto.DOUBLE for value in candidate.model.graph.input
            )
            advice = "it lacks many operators in float64, so export a float32 copy" if double else "try a lower opset"
            raise ExportError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot open the file, which uses opset "
                f"{opset_of(candidate.model)} ({cause}); {advice}",
                path,
            ) from error

    def error_at(self, count: int) -> float:
        """The largest relative error at a batch size.

        Raises
        ------
        ExportError
            The file does not run at this batch size, or its outputs have other names or shapes, differ by more than the
            tolerance, or choose another class.
        """
        batch = self.candidate.images(count)
        noise = None if self.candidate.noise is None else self.candidate.noise(batch)
        expected = self.expected(batch, noise)
        self._count += count
        self._varies |= any(_varies(value) for name, value in expected.outputs.items() if name not in self._not_answers)
        found = self.found(batch, noise)
        if list(found) != list(expected.outputs):
            raise ExportError(
                f"{self.path}: expected the outputs {list(expected.outputs)}, got {list(found)}", self.path
            )
        comparable = self._comparable(expected.score)
        try:
            return self._largest_error(found, expected.outputs, self.tolerance, comparable)
        except ExportError:
            if self.candidate.tap is None:
                raise
        # A classifier that rounds its input (quantised, uint8, float16) turns a difference of 1e-7 in a purified image
        # into a whole step. So compare the purified images first, and then the classifiers on the same purified images.
        tap = self.candidate.tap
        tapped = self._run(open_quietly(_with_output(self.file, tap)), batch, noise)
        self._largest_error(found, {name: tapped[name] for name in found}, LOOSE_TOLERANCE, comparable)
        outputs = self._reference(batch, noise, tapped[tap]).outputs
        coarse = tapped[tap].dtype not in (np.float32, np.float64)
        self._largest_error(
            {tap: tapped.pop(tap)},
            {tap: outputs[tap]},
            max(self.tolerance, COARSE_TOLERANCE) if coarse else self.tolerance,
            comparable,
        )
        self.compared_separately = True
        return self._largest_error(tapped, outputs, self.tolerance, comparable)

    def expected(self, batch: Tensor, noise: Tensor | None) -> Expected:
        """The guard's results for images in the classifier's format."""
        return self._reference(batch, noise, None)

    def found(self, batch: Tensor, noise: Tensor | None) -> dict[str, Array]:
        """The file's outputs for them, by name."""
        return self._run(self.session, batch, noise)

    def feeds(self, batch: Tensor, noise: Tensor | None) -> dict[str, Array]:
        """What the file takes for images, its other inputs included."""
        return self._feeds(self.session, batch, noise)

    def notes(self) -> list[str]:
        """What a reader of the report should know about the comparison."""
        notes = []
        if self.compared_separately:
            notes.append("the classifier rounds its input, so purifier and classifier were compared separately")
        if self._borderline:
            notes.append(
                f"{self._borderline} of the compared images score within rounding of the threshold; whether they are "
                "rejected was not compared"
            )
        if self._count > 1 and not self._varies:
            notes.append(
                "the classifier's outputs were the same for all compared images, so they show little; give its other "
                "inputs other values with feed= (--feed on the command line), if it has any"
            )
        if len(self._seen) == 1:
            case, other = ("rejected", "accepted") if self._seen == {True} else ("accepted", "rejected")
            notes.append(f"all compared images were {case}; no {other} image was run")
        return notes

    def _comparable(self, score: Array | None) -> Array | slice:
        """Which images' rejection can be compared: their score is not within the tolerance of the threshold."""
        threshold = self.candidate.threshold
        if score is None or threshold is None:
            return slice(None)
        scale = max(float(np.abs(score[np.isfinite(score)]).max(initial=0.0)), abs(threshold))
        comparable: Array = ~(np.abs(score - threshold) <= self.tolerance * scale)  # NaN is always rejected
        self._borderline += int((~comparable).sum())
        self._seen |= {bool(rejected) for rejected in ~(score[comparable] <= threshold)}
        return comparable

    def _reference(self, batch: Tensor, noise: Tensor | None, purified: Array | None) -> Expected:
        failure = f"{self.path}: the classifier itself fails on random images {tuple(batch.shape)}"
        with explained(failure, partial(ExportError, path=self.path), SIZE_ADVICE, describe=innermost_cause):
            return self.candidate.reference(batch, noise, purified)

    def _run(self, session: onnxruntime.InferenceSession, batch: Tensor, noise: Tensor | None) -> dict[str, Array]:
        feed = self._feeds(session, batch, noise)
        failure = f"{self.path}: the file does not run at batch {len(batch)}, a batch size may be baked in"
        with explained(failure, partial(ExportError, path=self.path), describe=innermost_cause):
            values = session.run(None, feed)
        return {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}

    def _feeds(self, session: onnxruntime.InferenceSession, batch: Tensor, noise: Tensor | None) -> dict[str, Array]:
        given = {self.candidate.input: batch.numpy()}
        if noise is not None:
            given[NOISE] = noise.numpy()
        return {**other_inputs(session, given, len(batch), self.candidate.feed), **given}

    def _largest_error(self, found: Outputs, expected: Outputs, tolerance: float, comparable: Array | slice) -> float:
        errors = []
        for name, value in found.items():
            by_rejection, wanted = name in (REJECTED, *self.candidate.replaced), expected[name]
            if by_rejection and isinstance(value, np.ndarray) and value.shape == wanted.shape:
                value, wanted = value[comparable], wanted[comparable]
            errors.append(
                compare(value, wanted, self.path, name, tolerance, allow_nonfinite=by_rejection or name == SCORE)
            )
        return max(errors)


def _with_output(file: Path, name: str) -> ModelProto:
    model = onnx.load(file)
    model.graph.output.append(ValueInfoProto(name=name))
    return model


def open_quietly(model: Path | ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU that logs nothing, because failures raise exceptions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return open_session(model, providers=[CPU], options=options)


def other_inputs(
    session: onnxruntime.InferenceSession, given: Collection[str], count: int, feed: Feed
) -> dict[str, Array]:
    """Values for the inputs that are not given: those of ``feed``, or examples."""
    known = feed.of(count)
    return {**example_values(session.get_inputs(), {*given, *known}, count), **known}


def _varies(output: Any) -> bool:
    """Whether the rows of an output differ."""
    if isinstance(output, np.ndarray):
        return bool(output.ndim and (output != output[:1]).any())
    return isinstance(output, list) and any(not np.array_equal(row, output[0]) for row in output)


def _parts(found: Any, expected: Any, path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """The arrays in a sequence or map, found and expected."""
    if len(found) != len(expected):
        raise ExportError(f"{path}: output {name!r}: expected {len(expected)} entries, got {len(found)}", path)
    rows = [expected] if isinstance(expected, Mapping) else expected
    others = [found] if isinstance(expected, Mapping) else found
    if not all(isinstance(row, Mapping) for row in rows):
        yield from zip(others, rows, strict=True)
        return
    for other, row in zip(others, rows, strict=True):
        if list(other) != list(row):
            raise ExportError(f"{path}: output {name!r}: expected the keys {list(row)}, got {list(other)}", path)
    yield np.array([[*row.values()] for row in others]), np.array([[*row.values()] for row in rows])


def compare(found: Any, expected: Any, path: Path, name: str, tolerance: float, *, allow_nonfinite: bool) -> float:
    """The largest difference, relative to the output's scale if that is above 1.

    NaN and infinity are errors; if ``allow_nonfinite``, they must be the same in both instead.
    """
    if isinstance(expected, list | Mapping):
        pairs = _parts(found, expected, path, name)
        errors = (compare(*pair, path, name, tolerance, allow_nonfinite=allow_nonfinite) for pair in pairs)
        return max(errors, default=0.0)
    got, wanted = np.asarray(found), np.asarray(expected)
    where = f"batch {len(wanted) if wanted.ndim else 0}, output {name!r}"
    if got.shape != wanted.shape:
        raise ExportError(f"{path}: {where}: expected shape {wanted.shape}, got {got.shape}", path)
    if not np.issubdtype(wanted.dtype, np.number) or wanted.size == 0:
        if not np.array_equal(got, wanted):
            raise ExportError(f"{path}: {where}: expected {wanted!r}, got {got!r}", path)
        return 0.0
    if np.issubdtype(wanted.dtype, np.floating):
        # Differences of a few roundings in the output's own type (float16) mean nothing.
        tolerance = max(tolerance, 8 * float(np.finfo(wanted.dtype).eps))
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    if allow_nonfinite:
        nonfinite = ~(np.isfinite(wanted) & np.isfinite(got))
        if not np.array_equal(got[nonfinite], wanted[nonfinite], equal_nan=True):
            raise ExportError(f"{path}: {where}: NaN or infinity in different places than in the guard's output", path)
        got, wanted = np.where(nonfinite, 0.0, got), np.where(nonfinite, 0.0, wanted)
    scale = max(1.0, float(np.abs(wanted).max()))
    error = float(np.abs(got - wanted).max()) / scale
    if not error <= tolerance:  # NaN too
        raise ExportError(
            f"{path}: {where}: differs from the guard by {error:.3g} of its scale, the tolerance is {tolerance:g}; "
            "the file was not written; if the classifier rounds that much, as in half precision, raise tolerance= "
            "(--tolerance on the command line)",
            path,
        )
    if wanted.ndim == 2:
        chosen = np.take_along_axis(wanted, got.argmax(1)[:, None], axis=1)[:, 0]
        # Classes closer to each other than the tolerance may swap.
        if (wanted.max(1) - chosen > 2 * tolerance * scale).any():
            raise ExportError(f"{path}: {where}: chooses other classes than the guard", path)
    return error
