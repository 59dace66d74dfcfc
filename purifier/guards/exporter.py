"""The base class of exporters, their report, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts.registry import Registry

if TYPE_CHECKING:
    from .guard import Guard


@dataclass(frozen=True)
class ExportReport:
    """The file that an exporter wrote, and how it was verified."""

    path: Path
    format: str
    size: int
    """Bytes on disk, of all files."""
    opset: int | None
    """Of an ONNX file; None for other formats."""
    max_error: Mapping[int, float] = field(default_factory=dict)
    """Batch size -> largest absolute difference from the guard, relative to the output's scale."""
    notes: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    """What the card beside the file says, as JSON values; empty if the exporter writes none."""


class Exporter(ABC):
    """Writes a guard to a file that runs without this project."""

    @abstractmethod
    def export(self, guard: Guard, path: str | Path, **options: Any) -> ExportReport:
        """Write and verify ``path``, or raise ``ExportError`` and leave no file."""


exporters: Registry[Exporter] = Registry("purifier.exporters", Exporter)
