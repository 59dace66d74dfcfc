"""The conformance check of exporters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..errors import PurifierError
from ..foreign_code import Attempt, explained
from ..guards.exporter import Exporter
from ..guards.guard import Guard
from ..guards.module import GuardedModule
from ..onnx.front import example_images, noise_for
from ..onnx.names import NOISE
from .rules import check


def check_exporter(exporter: Exporter, guard: Guard, path: Path, **options: Any) -> None:
    """Check that an exporter reports correctly, and that a failed export raises an error and leaves no files.

    If ``path`` ends in ``.onnx``, it also runs in plain onnxruntime on the CPU, on random images in batches of 1, 2 and
    7 (or the classifier's batch size, if fixed). Its first output (for a module the guard's answer) must agree
    with the guard's to 0.001 of its scale, or 0.01 for images of less than 32 bits. A random purifier is compared
    without noise, or with ``noise="input"`` on one draw. The guard must take only its image; ``options`` go to the
    exporter.
    """
    report = exporter.export(guard, path, **options)
    check(path.is_file(), "export must write to its path", "no file")
    check(report.size == path.stat().st_size, "the report must contain the file's size", report.size)
    check(bool(report.max_error), "an export must be verified", "no verified batch in the report")
    leftovers = [other.name for other in path.parent.iterdir() if other.suffix == ".tmp"]
    check(not leftovers, "no temporary files may remain", leftovers)
    if path.suffix == ".onnx":
        _check_onnx(guard, path, options.get("image_shape"))
    before = {other: other.stat().st_size for other in path.parent.rglob("*")}
    rule = "an export to a path below a file must raise a PurifierError"
    with Attempt() as attempt:
        exporter.export(guard, path / path.name, **options)
    check(isinstance(attempt.error, PurifierError), rule, repr(attempt.error or "none"))
    after = {other: other.stat().st_size for other in path.parent.rglob("*")}
    check(before == after, "a failed export must leave no files", sorted(map(str, after.items() ^ before.items())))


def _check_onnx(guard: Guard, path: Path, image_shape: tuple[int, int, int] | None) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    name = next(iter(inputs), "none") if isinstance(guard, GuardedModule) else guard.input
    check(len(inputs.get(name, ())) == 4, "the file must take the guard's images", inputs)
    channels, *sides = image_shape or (None, None, None)
    wanted = (None, *sides, channels) if guard.preprocessing.layout == "NHWC" else (None, channels, *sides)
    shape = tuple(size if isinstance(size, int) else want for size, want in zip(inputs[name], wanted, strict=True))
    fixed = None if isinstance(guard, GuardedModule) else guard.image.shape[0]
    for count in (1, 2, 7) if fixed is None else (fixed,):
        images, _ = example_images(guard.purifier, guard.preprocessing, shape, count=count)
        feed = {name: images.numpy()}
        noise = None
        if NOISE in inputs:
            check(isinstance(guard, GuardedModule), "noise as an input needs a torch guard", "a session")
            noise = noise_for(guard.purifier, guard.preprocessing.to_pixels(images).clamp(0, 1))
            feed[NOISE] = noise.numpy()
        names = [output.name for output in session.get_outputs()]
        which = guard.output.which
        wanted = (which, f"output_{which}", "logits") if isinstance(guard, GuardedModule) else ()
        with explained(f"the file must run at batch {count}", AssertionError):
            found = session.run([next((name for name in wanted if name in names), names[0])], feed)[0]
        expected = _answer(guard, images, noise)
        check(found.shape == expected.shape, f"the file must answer as the guard at batch {count}", found.shape)
        # A guard abstains with NaN and infinity.
        finite = np.isfinite(expected)
        check(
            np.array_equal(found[~finite], expected[~finite], equal_nan=True),
            f"the file must abstain as the guard at batch {count}",
            found[~finite],
        )
        off = np.abs(found[finite] - expected[finite]).max(initial=0.0)
        off /= np.abs(expected[finite]).max(initial=1.0)
        tolerance = 1e-3 if guard.preprocessing.dtype in ("float32", "float64") else 1e-2
        check(bool(off <= tolerance), f"the file must answer as the guard at batch {count}", f"{off:.3g} off its scale")


def _answer(guard: Guard, images: Tensor, noise: Tensor | None) -> np.ndarray[Any, Any]:
    if not isinstance(guard, GuardedModule):
        return np.asarray(guard.run(None, {guard.input: images.numpy()})[0], dtype=np.float64)
    quiet = copy.deepcopy(guard).cpu().eval()
    args, kwargs = ((images,), {}) if quiet.position == 0 else ((), {quiet.input: images})
    with torch.no_grad():
        output = quiet.answer(args, kwargs, quiet.pixels(args, kwargs), noise).output
    return quiet.output.find(output).double().numpy()
