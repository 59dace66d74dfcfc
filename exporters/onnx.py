"""One ONNX file, run and compared with the guard before anybody sees it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from purifier.atomic import atomic_path
from purifier.errors import ConfigError, ExportError, PurifierError
from purifier.guard import Guard, GuardedModule
from purifier.interfaces import Exporter, ExportReport, Purifier
from purifier.onnx_file import MAX_BYTES
from purifier.onnx_front import OPSET, SCORE, PurifierFront, cause_of, example_images, export_module
from purifier.onnx_graph import add_metadata, opset_of, purified_name, purifier_metadata, raise_opset
from purifier.pixels import Preprocessing
from purifier.seeding import SampleGenerator
from purifier.session import GuardedSession

from ._verify import COARSE_TOLERANCE, SIZE_ADVICE, Candidate, Outputs, Verifier, open_quietly, other_inputs


class OnnxExporter(Exporter):
    """Writes a guard to one ONNX file with a free batch size."""

    def export(  # type: ignore[override]  # the base leaves **options open, here they are named
        self,
        guard: Guard,
        path: str | Path,
        *,
        image_shape: tuple[int, int, int] | None = None,
        opset: int = OPSET,
        batches: Sequence[int] = (1, 2, 7),
        tolerance: float = 1e-4,
    ) -> ExportReport:
        """Write ``path`` and run it in a plain ONNX Runtime session on the CPU against the guard.

        A torch guard is compared with itself in evaluation mode, a guarded session with the purifier in torch
        followed by the original classifier. Outputs of a torch classifier are named ``logits`` (a tensor),
        ``output_0``, ``output_1``... (a tuple), or by its keys; ``purifier_score`` comes last if the guard
        has it.

        Parameters
        ----------
        image_shape
            (C, H, W) of the pixels; needed where neither the purifier nor the classifier fixes it.
        opset
            From 18 to the newest that the installed onnx knows; an ONNX classifier's own is kept if it is higher.
        batches
            The batch sizes to run; a classifier with a fixed one is run at that only.
        tolerance
            For the largest difference, divided by the largest value of the output if that is above 1. A torch
            guard for images of uint8 or float16 is compared at 0.01 at the least; an ONNX classifier that rounds
            its input is compared after the purifier, on the same purified images.

        Raises
        ------
        ConfigError
            An option has an impossible value.
        ExportError
            The guard cannot be exported, or the file does not reproduce it; no file is left.
        """
        _check_options(image_shape, opset, batches, tolerance)
        shape = image_shape or getattr(guard.purifier.config, "image_shape", None)
        notes = []
        if isinstance(guard, GuardedModule):
            candidate = _from_module(guard, Path(path), shape, opset)
        else:
            candidate = _from_session(guard, Path(path), shape, opset)
            if guard.image.shape[0] is not None:
                batches = (guard.image.shape[0],)
                notes.append(f"the classifier's batch size is fixed at {batches[0]}; run at that size only")
        if isinstance(guard, GuardedModule) and guard.preprocessing.dtype not in ("float32", "float64"):
            tolerance = max(tolerance, COARSE_TOLERANCE)
            notes.append(f"images of {guard.preprocessing.dtype}: compared at a tolerance of {tolerance:g}")
        if _draws(guard, candidate.images(1)):
            notes.append("the purifier is random; the file holds its mean, without noise")
        add_metadata(candidate.model, purifier_metadata(guard.purifier))
        _check_model(candidate.model, Path(path))
        with atomic_path(path) as temporary:
            temporary.write_bytes(candidate.model.SerializeToString())
            verifier = Verifier(temporary, Path(path), candidate, tolerance)
            errors = {count: verifier.error_at(count) for count in batches}
            size = temporary.stat().st_size
        if verifier.in_halves:
            notes.append("the classifier rounds its input: purifier and classifier were compared one after the other")
        return ExportReport(Path(path), "onnx", size, opset_of(candidate.model), errors, tuple(notes))


class _Flat(nn.Module):
    """A guard from one image tensor to a tuple of tensors, which is what an ONNX graph is."""

    def __init__(self, guard: GuardedModule) -> None:
        super().__init__()
        self.guard = guard

    def run(self, image: Tensor) -> tuple[Any, Tensor | None]:
        guard = self.guard
        result = guard(image) if guard.position == 0 else guard(**{guard.input: image})
        return result if guard.score else (result, None)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(_named(*self.run(image)).values())


def _from_module(guard: GuardedModule, path: Path, shape: tuple[int, int, int] | None, opset: int) -> Candidate:
    if shape is None:
        raise ExportError(
            f"{path}: neither the purifier nor the torch classifier fixes the images' shape; give image_shape=(C, H, "
            "W), on the command line --image-shape 3x32x32",
            path,
        )
    # Quantised modules keep other things than tensors there.
    tensors = [value for value in guard.state_dict().values() if isinstance(value, Tensor)]
    weight = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if weight > MAX_BYTES:
        raise _too_large(path, weight)
    kind = type(guard.classifier).__name__
    with _explained(path, f"{kind} and its purifier cannot be copied to the CPU"):
        flat = _Flat(copy.deepcopy(guard).cpu().eval())
    # A copy, so that what is compared has the mean as the file does.
    flat.guard.purifier.draw = lambda pixels, generator: None  # type: ignore[method-assign]
    images = _images(guard.purifier, guard.preprocessing, _in_layout(shape, guard.preprocessing))
    example = images(2)
    input_name = guard.input if guard.input.isidentifier() else "images"
    trial = f"{kind} fails on its image alone, random {tuple(example.shape)}"
    with _explained(path, trial, f"; {SIZE_ADVICE}"), torch.no_grad():
        answer = flat.run(example)
    with _explained(path, f"torch cannot export {kind}"):
        names = list(_named(*answer))
        if input_name in names:
            raise TypeError(f"the input and an output are both called {input_name!r}")
        model = export_module(flat, example, free=(0,), input=input_name, outputs=names, opset=opset)

    def reference(batch: Tensor, purified: object) -> Outputs:
        with torch.no_grad():
            return {name: value.numpy() for name, value in zip(names, flat(batch), strict=True)}

    return Candidate(model, input_name, images, reference)


def _from_session(guard: GuardedSession, path: Path, shape: tuple[int, int, int] | None, opset: int) -> Candidate:
    front = PurifierFront(copy.deepcopy(guard.purifier).cpu(), guard.preprocessing, guard.score).eval()
    original = open_quietly(guard.classifier)
    given = _in_layout(shape or (None, None, None), guard.preprocessing)
    declared = tuple(size or wish for size, wish in zip(guard.image.shape, given, strict=True))
    images = _images(guard.purifier, guard.preprocessing, declared)

    tap = purified_name(guard.classifier)

    def reference(batch: Tensor, given: Any) -> Outputs:
        with torch.no_grad():
            purified, *scores = front(batch)
        images = purified.numpy() if given is None else given
        feed = {**other_inputs(original, guard.input, len(batch), path), guard.input: images}
        names = [output.name for output in original.get_outputs()]
        found = dict(zip(names, original.run(None, feed), strict=True))
        # The one output the guard cannot purify: the fed image itself, under its own name.
        found.update({guard.input: batch.numpy()} if guard.input in found else {})
        found.update({SCORE: scores[0].numpy()} if scores else {})
        return found if given is None else {**found, tap: purified.numpy()}

    return Candidate(raise_opset(guard.model, opset), guard.input, images, reference, tap)


def _images(purifier: Purifier, preprocessing: Preprocessing, shape: tuple[int | None, ...]) -> Callable[[int], Tensor]:
    return lambda count: example_images(purifier, preprocessing, shape, count=count)[0]


def _in_layout(shape: tuple[int | None, ...], preprocessing: Preprocessing) -> tuple[int | None, ...]:
    """(C, H, W) as the classifier has it, behind a free batch size."""
    channels, height, width = shape
    inner = (height, width, channels) if preprocessing.layout == "NHWC" else (channels, height, width)
    return (None, *inner)


def _draws(guard: Guard, image: Tensor) -> bool:
    pixels = guard.preprocessing.to_pixels(image).clamp(0, 1)
    purifier = copy.deepcopy(guard.purifier).cpu()
    return purifier.draw(pixels, SampleGenerator(0, range(len(pixels)))) is not None


def _check_options(shape: Any, opset: Any, batches: Any, tolerance: Any) -> None:
    newest = onnx.defs.onnx_opset_version()  # beyond it torch writes opset 18, and says nothing
    if shape is not None and not (_are_sizes(shape) and len(shape) == 3):
        raise ConfigError(f"image_shape: expected (C, H, W), three positive integers, got {shape!r}")
    if type(opset) is not int or not OPSET <= opset <= newest:
        raise ConfigError(f"opset: expected an integer from {OPSET} to {newest}, got {opset!r}")
    if not _are_sizes(batches) or not batches:
        raise ConfigError(f"batches: expected positive batch sizes, such as (1, 2, 7), got {batches!r}")
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise ConfigError(f"tolerance: expected a number, 0 or more, got {tolerance!r}")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple | list | range) and all(type(value) is int and value > 0 for value in values)


@contextmanager
def _explained(path: Path, failure: str, advice: str = "") -> Iterator[None]:
    """A classifier is anybody's code, which can raise anything."""
    try:
        yield
    except PurifierError:
        raise
    except Exception as error:
        raise ExportError(f"{path}: {failure}: {cause_of(error)}{advice}", path) from error


def _check_model(model: ModelProto, path: Path) -> None:
    if model.ByteSize() > MAX_BYTES:
        raise _too_large(path, model.ByteSize())
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: onnx's checker refuses the guarded graph: {error}", path) from error


def _too_large(path: Path, size: int) -> ExportError:
    return ExportError(
        f"{path}: the guard has {size / 1e9:.1f} GB, one ONNX file holds {MAX_BYTES / 1e9:.1f} GB; "
        "halve its weights first (half precision)",
        path,
    )


def _named(output: Any, scores: Tensor | None) -> dict[str, Tensor]:
    """The graph's outputs: every tensor in a classifier's output, then the scores."""
    pairs = list(_flatten(output, ""))
    if not pairs:
        raise TypeError("it returns no tensor")
    if scores is not None:
        pairs.append((SCORE, scores))
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TypeError(f"two of its outputs would be called {twice!r}; rename one of them")
    return named


def _flatten(output: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a classifier's output, under the name of its place."""
    if isinstance(output, Tensor):
        yield name or "logits", output
        return
    if output is None:
        return
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping | type):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        parts = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(str(place) if name else f"output_{place}", value) for place, value in enumerate(output)]
    else:
        raise TypeError(f"its output holds a {type(output).__name__}; expected tensors")
    for key, value in parts:
        yield from _flatten(value, f"{name}_{key}" if name else key)
