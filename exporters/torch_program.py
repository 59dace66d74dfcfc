"""Export to one ``.pt2`` file, a ``torch.export`` program that runs with torch alone."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten

from purifier.atomic import atomic_path
from purifier.contracts.purifier import usual_shape_of
from purifier.errors import ExportError
from purifier.foreign_code import explained
from purifier.guards.exporter import Exporter, ExportReport
from purifier.guards.guard import Guard
from purifier.guards.module import GuardedModule
from purifier.onnx.front import PurifierFront
from purifier.onnx.metadata import purifier_metadata
from purifier.onnx.torch_export import innermost_cause
from purifier.rejection.policy import check_exportable

from ._candidates import in_layout, random_images
from ._options import check_batches, check_shape, check_tolerance
from ._verify import COARSE_TOLERANCE, compare

SOURCES = ("stack_trace", "from_node", "torch_fn")
"""What torch notes on nodes about the machine where a program was made."""


class TorchExporter(Exporter):
    """Writes a guarded torch module as a program with a free batch size."""

    def export(  # type: ignore[override]  # the base class takes any **options, here they are named
        self,
        guard: Guard,
        path: str | Path,
        *,
        image_shape: tuple[int, int, int] | None = None,
        batches: Sequence[int] = (1, 2, 7),
        tolerance: float = 1e-4,
    ) -> ExportReport:
        """Write ``path``, load it again and compare what it answers with the guard in evaluation mode, on the CPU.

        The program returns what the guard returns. ``torch.export.load(path).module()`` runs it; a classifier that
        answers with a class of its own needs the library of that class. A bad image gets NaN, or -1 for a label. A
        random purifier is replaced by its mean.

        Parameters
        ----------
        image_shape
            (C, H, W) of the pixels; required if the purifier does not fix it.
        batches
            The batch sizes to run.
        tolerance
            Limit on the largest difference, divided by the largest value of the output if that is above 1. On uint8 or
            float16 images it is at least 0.01.

        Raises
        ------
        ConfigError
            An option has an impossible value.
        ExportError
            The guard is not a torch module, cannot be exported, or the file does not reproduce it; no file is left.
        """
        check_shape(image_shape)
        check_batches(batches)
        check_tolerance(tolerance)
        if not isinstance(guard, GuardedModule):
            raise ExportError(f"{path}: a guarded ONNX model is no torch module; export it with the format onnx", path)
        check_exportable(guard.rejection)
        if guard.preprocessing.dtype not in ("float32", "float64"):
            tolerance = max(tolerance, COARSE_TOLERANCE)
        own = copy.deepcopy(guard).cpu().eval()
        front = PurifierFront(own.purifier, own.preprocessing)
        shape = image_shape or usual_shape_of(own.purifier)
        if shape is None:
            raise ExportError(
                f"{path}: the purifier does not fix the images' shape; give image_shape=(C, H, W) (--image-shape "
                "3x32x32 on the command line)",
                path,
            )
        scored = own.score or own.rejection.active
        images = random_images(front, in_layout(shape, own.preprocessing), mixed=scored)
        content = _program(own, images(2), Path(path))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            answered = _loaded(content, Path(path))
            errors = {count: _error(answered, own, images(count), Path(path), tolerance) for count in batches}
        return ExportReport(Path(path), "torch", len(content), None, errors)


def _program(guard: GuardedModule, images: Tensor, path: Path) -> bytes:
    """The file's content."""
    kind = type(guard.classifier).__name__
    args, kwargs = _called(guard, images)
    batch = torch.export.Dim.DYNAMIC
    free: Any = ({0: batch},) if args else {guard.input: {0: batch}}
    failed = partial(ExportError, path=path)
    with explained(f"{path}: torch cannot export {kind}", failed, describe=innermost_cause), torch.no_grad():
        program = torch.export.export(guard, args, kwargs, dynamic_shapes=free, strict=False)
        _forget_sources(program)
        written = io.BytesIO()
        facts = purifier_metadata(guard.purifier, guard.rejection)
        torch.export.save(program, written, extra_files=dict(facts))
    return written.getvalue()


def _called(guard: GuardedModule, images: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return ((images,), {}) if guard.position == 0 else ((), {guard.input: images})


def _forget_sources(program: ExportedProgram) -> None:
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for name in SOURCES:
                node.meta.pop(name, None)


def _loaded(content: bytes, path: Path) -> Any:
    failed = partial(ExportError, path=path)
    with explained(f"{path}: torch cannot load what it has saved", failed), warnings.catch_warnings():
        return torch.export.load(io.BytesIO(content)).module()


@torch.no_grad()
def _error(program: Any, guard: GuardedModule, images: Tensor, path: Path, tolerance: float) -> float:
    """The largest relative error for a batch."""
    args, kwargs = _called(guard, images)
    failed = partial(ExportError, path=path)
    with explained(f"{path}: the guard itself fails on random images {tuple(images.shape)}", failed):
        wanted, structure = tree_flatten(guard(*args, **kwargs))
    with explained(f"{path}: the file does not run at batch {len(images)}", failed):
        found, own = tree_flatten(program(*args, **kwargs))
    if own != structure:
        raise ExportError(f"{path}: expected {structure}, got {own}", path)
    loose = guard.rejection.active
    errors = [
        compare(one.numpy(), other.numpy(), path, f"number {place}", tolerance, allow_nonfinite=loose)
        for place, (one, other) in enumerate(zip(found, wanted, strict=True))
        if isinstance(other, Tensor)
    ]
    return max(errors, default=0.0)
