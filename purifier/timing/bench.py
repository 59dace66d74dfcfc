"""bench(): what a guard costs, against its classifier alone, each way to run them, side by side in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..contracts.purifier import usual_shape_of
from ..errors import ConfigError
from ..guards.guard import Guard
from ..guards.module import GuardedModule
from ..guards.session import GuardedSession
from ..torch_tools.freezing import freeze
from .machine import Machine, Work, measure_machine, work_of
from .measuring import growth, take_turns
from .report import BenchReport, Timing
from .ways import CLASSIFIER, COMPILED, GUARD, TORCH, Way, all_ways

MACHINE_SECONDS = 0.5
"""How long each rate of the machine is measured, before the first batch size and before each."""
Tell = Callable[[str], None]


def bench(
    guard: Guard,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    image_shape: tuple[int, int, int] | None = None,
    seconds: float = 2.0,
    compiled: bool = True,
    progress: Tell | None = None,
) -> BenchReport:
    """Time the classifier alone and the guard in torch, compiled, and in ONNX Runtime; all take turns in one run.

    Parameters
    ----------
    guard
        A guard, as returned by ``purifier.guard``; it runs on the device where it is. A guarded ONNX session is timed
        in ONNX Runtime only, with its own providers.
    batch_sizes
        Images per call. A session with a fixed batch size is timed at that one.
    image_shape
        (C, H, W) of the images, random ones; by default what the purifier was made for, or what the session takes.
    seconds
        About how long each way is timed at each batch size.
    compiled
        Whether to time ``torch.compile`` too, which compiles for up to minutes.
    progress
        Called with what comes next, in words.

    Raises
    ------
    ConfigError
        An option is wrong, or nothing says what shape images have.
    """
    if not isinstance(guard, GuardedModule | GuardedSession):
        raise ConfigError(
            f"bench: expected a guard, got {type(guard).__name__}; make one with purifier.guard(model, purifier)"
        )
    sizes, shape = _sizes(guard, batch_sizes), _shape(guard, image_shape)
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds: expected a positive number, got {seconds!r}")
    tell = progress or (lambda _: None)
    own = guard.classifier if isinstance(guard, GuardedModule) else guard.purifier
    with tempfile.TemporaryDirectory() as folder, freeze(own, guard.purifier) as device, torch.no_grad():
        images = {size: guard.preprocessing.to_classifier(_pixels(size, shape).to(device)) for size in {2, *sizes}}
        first = sizes[0] if _fixed_batch(guard) else 2
        tell("exporting and compiling")
        ways, missing = all_ways(guard, images[first], Path(folder), compiled=compiled)
        tell("measuring the machine")
        machine = measure_machine(device, MACHINE_SECONDS)
        memory = {str(way): growth(way.given(images[max(sizes)]), device) for way in ways}
        timings: list[Timing] = []
        for size in sizes:
            tell(f"batches of {size}")
            machine = machine.best(measure_machine(device, MACHINE_SECONDS))
            calls = {str(way): way.given(images[size]) for way in ways}
            work = {way.what: work_of(calls[str(way)]) for way in ways if way.engine == TORCH}
            timings += _timings(ways, take_turns(calls, device, seconds), size, work, machine)
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("adversarial-purifier", "torch", "onnxruntime-gpu")},
        classifier=guard.pixel_classifier().describe(),
        purifier=type(guard.purifier).__name__,
        image_shape=shape,
        machine=machine,
        timings=timings,
        memory=memory,
        missing=missing,
    )


def _timings(
    ways: Sequence[Way],
    found: Mapping[str, list[float]],
    size: int,
    work: Mapping[str, Work],
    machine: Machine,
) -> list[Timing]:
    medians = {name: float(np.median(seconds)) for name, seconds in found.items()}
    timings = []
    for way in ways:
        seconds, own = np.array(found[str(way)]), work.get(way.what)
        engine = TORCH if way.engine == COMPILED else way.engine
        alone = medians.get(f"{CLASSIFIER}, {engine}") if way.what == GUARD else None
        p50 = medians[str(way)]
        timings.append(
            Timing(
                way.what,
                way.engine,
                size,
                len(seconds),
                p50,
                float(np.quantile(seconds, 0.99, method="higher")),
                size * len(seconds) / float(seconds.sum()),
                None if alone is None else p50 / alone,
                None if own is None else own.flops / p50 / machine.flops,
                None if own is None else own.moved / p50 / machine.bandwidth,
            )
        )
    return timings


def _pixels(size: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(size, *shape, generator=torch.Generator().manual_seed(0))


def _sizes(guard: Guard, given: Sequence[int]) -> list[int]:
    whole = [size for size in given if isinstance(size, int) and not isinstance(size, bool) and size >= 1]
    if not given or len(whole) < len(given):
        raise ConfigError(f"batch_sizes: expected positive numbers of images, such as (1, 8), got {given!r}")
    fixed = _fixed_batch(guard)
    return sorted(set(whole)) if fixed is None else [fixed]


def _fixed_batch(guard: Guard) -> int | None:
    size = guard.image.shape[0] if isinstance(guard, GuardedSession) else None
    return size if isinstance(size, int) else None


def _shape(guard: Guard, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    shape = given or usual_shape_of(guard.purifier)
    if isinstance(guard, GuardedSession):
        own = guard.image.shape[1:]
        shape = tuple(wanted or size for wanted, size in zip(own, shape or (None,) * 3, strict=True))  # type: ignore[assignment]
    if shape is None or len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ConfigError(
            f"image_shape: expected (C, H, W), three positive integers, got {shape!r}; neither purifier nor classifier "
            "says what images they take"
        )
    return shape
