"""export(): a guard to a file, through whichever exporter is named."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from ..contracts.purifier import Purifier
from ..errors import ConfigError, ExportError
from ..foreign_code import explained
from .exporter import ExportReport, exporters
from .guard import Guard


def export(guard: Guard, path: str | Path, *, format: str = "onnx", **options: Any) -> ExportReport:
    """Write a guard to a file that runs without this project, after comparing the two.

    Parameters
    ----------
    guard
        What :func:`purifier.guard` returned.
    path
        The file to write; it is replaced only by a verified one.
    format
        The name of an exporter, as `purifier list` shows it.
    **options
        The exporter's own. Of ``onnx``: ``image_shape`` (C, H, W), ``opset``, ``batches``, ``tolerance``,
        ``noise`` (``mean``, or ``input`` for a random purifier's noise as a second input ``purifier_noise``).

    Returns
    -------
    ExportReport
        The file's size and, for each batch size tried, the largest relative difference from the guard.

    Raises
    ------
    ExportError
        The guard cannot be exported or the file does not reproduce it; no file is left.
    ConfigError
        ``guard`` is no guard, ``path`` no path, ``format`` no name, or the exporter has no such option.
    """
    if not isinstance(getattr(guard, "purifier", None), Purifier) or not hasattr(guard, "classifier"):
        raise ConfigError(
            f"export: expected what purifier.guard(model, purifier) returns, got {type(guard).__name__}; guard it first"
        )
    if not isinstance(path, str | Path):
        raise ConfigError(f"path: expected the file to write, got {path!r}")
    if not isinstance(format, str):
        raise ConfigError(f"format: expected an exporter's name, one of {', '.join(exporters)}; got {format!r}")
    exporter = exporters.get(format)()
    parameters = list(inspect.signature(exporter.export).parameters.values())
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in options:
        if name not in known and not takes_any:
            raise ConfigError(
                f"exporter {format!r} has no option {name!r}; its options are: {', '.join(known) or 'none'}"
            )
    advice = "let it raise an error instead"
    with explained("the classifier failed", partial(ExportError, path=path), advice, catching=(SystemExit,)):
        return exporter.export(guard, path, **options)
