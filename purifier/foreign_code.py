"""Running somebody else's code: plugins, classifiers, exporters and libraries can raise anything.

This is the one place that catches everything; callers say who failed and doing what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from .errors import PurifierError


class Attempt:
    """A ``with`` block that keeps what is raised inside it, for callers who go on without the result.

    ``KeyboardInterrupt`` and other exceptions that are no ``Exception`` pass, unless ``catching`` names them.
    """

    def __init__(self, catching: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self.error: BaseException | None = None
        self._catching = catching

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error if isinstance(error, self._catching) else None
        return self.error is not None


def is_purifier_error(error: BaseException) -> bool:
    """Whether an exception is one of ours."""
    return isinstance(error, PurifierError)


@contextmanager
def explained(
    failure: str,
    make: Callable[[str], Exception],
    advice: str = "",
    *,
    passing: Callable[[BaseException], bool] = is_purifier_error,
    catching: tuple[type[BaseException], ...] = (Exception,),
    describe: Callable[[BaseException], str] | None = None,
) -> Iterator[None]:
    """Turn whatever is raised inside into one error: ``FAILURE (KIND: message); ADVICE``.

    Parameters
    ----------
    failure
        Who failed and doing what, such as "Vae fails on images (2, 1, 28, 28)".
    make
        Makes the error from the whole message.
    advice
        What to do about it.
    passing
        Which exceptions pass as they are; by default our own, which explain themselves.
    catching
        Exceptions that are explained, all others pass too.
    describe
        What stands in the brackets, by default :func:`cause_of`.
    """
    with Attempt(catching) as attempt:
        yield
    if attempt.error is None:
        return
    if passing(attempt.error):
        raise attempt.error
    cause = (describe or cause_of)(attempt.error)
    raise make(f"{failure} ({cause})" + (f"; {advice}" if advice else "")) from attempt.error


def cause_of(error: BaseException) -> str:
    """An exception in one short line: its kind and message."""
    if isinstance(error, SystemExit):
        return f"it ended the program with exit code {error.code}"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of a message that goes on for many, or the exception's kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
