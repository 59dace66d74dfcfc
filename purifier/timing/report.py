"""What a timing of a guard found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from .machine import Machine

SCHEMA = 1


@dataclass(frozen=True)
class Timing:
    """One way to answer at one batch size."""

    what: str
    """``classifier`` or ``guard``."""
    engine: str
    """``torch``, ``torch.compile`` or ``onnxruntime``."""
    batch_size: int
    calls: int
    p50: float
    """Half of the calls took at most so many seconds."""
    p99: float
    """99 in 100 calls took at most so many seconds; with fewer than 100 calls the slowest."""
    images_per_second: float
    """Over all calls."""
    overhead: float | None
    """For a guard: its ``p50``, divided by that of the classifier alone in the same engine (torch's for compiled)."""
    of_matmul_rate: float | None
    """The share of the machine's rate of matrix products that was used; None for ONNX models."""
    of_bandwidth: float | None
    """The share of the machine's memory bandwidth, if each of torch's operators reads and writes all its tensors.
    Engines that fuse operators move less, so this can exceed 1. None for ONNX models."""


@dataclass(frozen=True)
class BenchReport:
    """The time and memory of classifier and guard, each way to run them."""

    created: str
    versions: Mapping[str, str]
    classifier: str
    purifier: str
    image_shape: Sequence[int]
    machine: Machine
    timings: Sequence[Timing]
    memory: Mapping[str, int | None]
    """By how many bytes memory grows when the largest batch is answered for the first time, by ``what, engine``."""
    missing: Mapping[str, str]
    """The ways that do not work here, and why."""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON."""
        return atomic_write(path, json.dumps(self.as_json(), indent=2) + "\n")
