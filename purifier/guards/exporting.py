"""export(): write a guard to a file with the named exporter."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..contracts.purifier import Purifier
from ..errors import ConfigError, ExportError, OutputError
from ..foreign_code import explained, is_exception
from .exporter import ExportReport, exporters
from .guard import Guard
from .precision import refuse_double

USUAL_FORMATS = {".onnx": "onnx", ".pt2": "torch"}
"""What the names of files say about their formats."""


def export(guard: Guard, path: str | Path, *, format: str = "onnx", **options: Any) -> ExportReport:
    """Write a guard to a file that runs without this project, and verify the file against the guard.

    Parameters
    ----------
    guard
        A guard, as returned by ``purifier.guard``.
    path
        The file to write; an existing file is replaced only by a verified one.
    format
        The name of an exporter; ``purifier list`` shows them.
    **options
        The exporter's own options. ``onnx`` takes ``image_shape`` (C, H, W), ``opset``, ``batches``, ``tolerance``,
        ``noise`` (``mean``, or ``input`` to make a random purifier's noise a second input, ``purifier_noise``),
        ``precision`` (``fp32``, ``fp16`` or ``int8``), ``batch`` to fix the batch size, and ``data``, images to judge
        the file on, with ``min_agreement``, ``norm``, ``eps`` and ``sample``.

    Returns
    -------
    ExportReport
        The file's size and, for each batch size tried, the largest relative difference from the guard.

    Raises
    ------
    ExportError
        The guard cannot be exported, or the file does not reproduce it; no file is left.
    ConfigError
        ``guard``, ``path`` or ``format`` has the wrong type, or the exporter has no such option.
    OutputError
        ``path`` is the file that the guard's classifier was read from.
    """
    if not isinstance(getattr(guard, "purifier", None), Purifier) or not hasattr(guard, "classifier"):
        raise ConfigError(
            f"export: expected a guard, got {type(guard).__name__}; make one with purifier.guard(model, purifier)"
        )
    refuse_double(guard, "export")
    if not isinstance(path, str | Path):
        raise ConfigError(f"path: expected the name of the file to write, got {path!r}")
    if not isinstance(format, str):
        raise ConfigError(f"format: expected the name of an exporter ({', '.join(exporters)}), got {format!r}")
    check_not_read(Path(path), [getattr(guard, "file", None)])
    exporter = exporters.get(format)()
    parameters = list(inspect.signature(exporter.export).parameters.values())
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in options:
        if name not in known and not accepts_any:
            raise ConfigError(
                f"exporter {format!r} has no option {name!r}; its options are: {', '.join(known) or 'none'}"
            )
    usual = USUAL_FORMATS.get(Path(path).suffix.lower(), format)
    if format != usual and format in USUAL_FORMATS.values():
        raise ConfigError(
            f"path: {path} is named like a file of the format {usual!r}, but the format is {format!r}; give "
            f"format={usual!r} (--format {usual}), or another name"
        )
    advice = "make it raise an exception instead"
    with explained("the classifier failed", partial(ExportError, path=path), advice, passing=is_exception):
        return exporter.export(guard, path, **options)


def check_not_read(path: Path, sources: Iterable[str | Path | None]) -> None:
    """Raise ``OutputError`` if the file to write is one of those that the guard was read from."""
    for source in sources:
        if source is not None and path.is_file() and Path(source).is_file() and path.samefile(source):
            raise OutputError(f"cannot write {path}: the guard is read from that file; give another name", path)
