"""Run third-party code: plugins, classifiers, exporters and libraries can raise anything.

This is the only place that catches every exception; callers say what failed and doing what.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from .errors import PurifierError

LIBRARIES = {"purifier", "torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "safetensors"}
LIBRARIES |= {"google", "numpy", "PIL", "rich", "typer", "click"}
"""Top-level packages whose lines are not what the author of a plugin or classifier has to fix."""


class Interrupted(BaseException):
    """Base class of what this project raises to end in the middle of foreign code, which is not to blame for it."""


class Attempt:
    """A ``with`` block that keeps the exception raised inside it, without its traceback, for callers that go on.

    Foreign code can raise anything: the end of the program, or a class of its own below ``BaseException``. Without
    ``catching`` everything is kept but ``KeyboardInterrupt`` and ``Interrupted``, which propagate.
    """

    def __init__(self, catching: tuple[type[BaseException], ...] | None = None) -> None:
        self.error: BaseException | None = None
        self.cause = ""
        """``cause_of`` the exception, with its place."""
        self._catching = catching

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or not _is_caught(error, self._catching):
            return False
        self.error, self.cause = error, cause_of(error)
        # A traceback would keep the failed call's tensors alive as long as this object and its frame.
        for link in causes_of(error):
            link.__traceback__ = None
        return True


def causes_of(error: BaseException, *, declared: bool = False) -> list[BaseException]:
    """An exception and those that led to it, each once, since ``raise error from error`` makes a circle.

    ``declared`` follows ``raise ... from`` only.
    """
    chain = [error]
    while (link := chain[-1].__cause__ or (None if declared else chain[-1].__context__)) and link not in chain:
        chain.append(link)
    return chain


def _is_caught(error: BaseException, catching: tuple[type[BaseException], ...] | None) -> bool:
    if catching is None:
        return not isinstance(error, KeyboardInterrupt | Interrupted)
    return isinstance(error, catching)


def is_exception(error: BaseException) -> bool:
    """Whether this is an ordinary error, and not the end of the program or a class below ``BaseException`` alone."""
    return isinstance(error, Exception)


def is_purifier_error(error: BaseException) -> bool:
    """Whether an exception is one of this project's own."""
    return isinstance(error, PurifierError)


@contextmanager
def explained(
    failure: str,
    make: Callable[[str], Exception],
    advice: str | Callable[[], str] = "",
    *,
    passing: Callable[[BaseException], bool] = is_purifier_error,
    catching: tuple[type[BaseException], ...] | None = None,
    describe: Callable[[BaseException], str] | None = None,
) -> Iterator[None]:
    """Turn any exception raised inside into one error: ``FAILURE (TYPE: message); ADVICE``.

    Parameters
    ----------
    failure
        What failed and doing what, such as "Vae fails on images (2, 1, 28, 28)".
    make
        Builds the error from the full message.
    advice
        What to do about it, or what finds that out once it has failed.
    passing
        Which exceptions propagate unchanged; by default this project's own, which need no explanation.
    catching
        Which exceptions to explain; all others propagate too. By default all but ``KeyboardInterrupt`` and
        ``Interrupted``.
    describe
        Makes the text in the brackets; by default ``cause_of``.
    """
    try:
        yield
    except BaseException as error:
        if passing(error) or not _is_caught(error, catching):
            raise
        cause = (describe or cause_of)(error)
        known = advice if isinstance(advice, str) else advice()
        raise make(f"{failure} ({cause})" + (f"; {known}" if known else "")) from error


def cause_of(error: BaseException) -> str:
    """An exception in one short line: its type, its message, and the line of foreign code that it comes from.

    This project's own errors are sentences that need no type.
    """
    text, place = " ".join(str(error).split())[:300].removesuffix("."), place_of(error)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if text and is_purifier_error(error):
        said = text
    if isinstance(error, SystemExit):
        said = f"it exited the program with code {error.code}"
    return said if place is None else f"{said}, at {place}"


def place_of(error: BaseException) -> str | None:
    """``FILE:LINE`` of the last call in foreign code, below where the exception was caught; None if there is none."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if is_foreign(frame.f_globals.get("__name__")) and file.is_file():
            folder = Path.cwd()
            place = f"{file.relative_to(folder) if file.is_relative_to(folder) else file}:{line}"
    return place


def is_foreign(module: object) -> bool:
    """Whether a module of this name belongs to the author of a plugin or classifier."""
    package = str(module or "").partition(".")[0]
    return bool(package) and package not in LIBRARIES and package not in sys.stdlib_module_names


def first_line(error: BaseException) -> str:
    """The first line of a long message, or the exception's type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].removesuffix(".")
