"""Every error a user can cause. Each message says what was expected, what was given and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PurifierError(Exception):
    """Root of all errors raised on purpose by this project.

    The first argument is the message; subclasses keep details of the failure as attributes.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class PixelError(PurifierError):
    """An image tensor has the wrong type, shape or range."""


class ConfigError(PurifierError):
    """An option of a plugin or command has an impossible value."""


class TrainingError(PurifierError):
    """Training cannot start or cannot continue."""


class AuditError(PurifierError):
    """An audit cannot run as requested."""


class GradientError(AuditError):
    """A gradient was requested along a route that has none."""


class RejectedError(PurifierError):
    """Images were rejected: the purifier scores them as too unusual.

    ``rejected`` is bool (N,), ``score`` floats (N,): tensors from a module, arrays from a session.
    """

    def __init__(self, message: str, rejected: Any = None, score: Any = None) -> None:
        super().__init__(message, rejected, score)
        self.rejected, self.score = rejected, score


class UnguardedError(PurifierError, AttributeError):
    """Something of a guarded classifier would answer without the purifier.

    It is an ``AttributeError`` too, so for ``hasattr`` a guard has no such method.
    """


class SpecError(PurifierError):
    """A MODEL, PURIFIER, ATTACK or DATA spec that cannot be read."""

    def __init__(self, message: str, spec: str) -> None:
        super().__init__(message, spec)
        self.spec = spec


class PluginError(PurifierError):
    """A plugin is missing, broken or breaks its contract."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message, name)
        self.name = name


class PluginClashError(PluginError):
    """Two distributions registered the same plugin name."""

    def __init__(self, message: str, name: str, distributions: tuple[str, ...]) -> None:
        super().__init__(message, name)
        self.args = (message, name, distributions)
        self.distributions = distributions


class FileError(PurifierError):
    """A file cannot be read or written."""

    def __init__(self, message: str, path: str | Path) -> None:
        super().__init__(message, path)
        self.path = Path(path)


class CheckpointError(FileError):
    """A purifier checkpoint is missing or damaged, or the file is not a checkpoint."""


class ClassifierError(FileError):
    """A classifier cannot be loaded or cannot be guarded."""


class DataError(FileError):
    """A data set is missing, empty or damaged."""


class ExportError(FileError):
    """An exported file could not be made, or did not reproduce the guard."""


class OutputError(FileError):
    """A result cannot be written to the requested path."""


@contextmanager
def about(file: str | None) -> Iterator[None]:
    """Begin the messages of errors raised inside with the file that they are about, unless they name it already."""
    try:
        yield
    except PurifierError as error:
        if file is not None and file not in str(error):
            error.args = (f"{file}: {error}", *error.args[1:])
        raise
