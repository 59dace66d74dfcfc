"""What an ONNX file may ask for before it is refused, and how to allow more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ..errors import ConfigError

MAX_BYTES = 1_500_000_000
"""Of a file with its external data. Protobuf's limit is 2 GB, and the purifier and a margin must fit too."""
MAX_ELEMENTS = 2**28
"""The largest tensor that a graph may create whatever it is given: 1 GiB of float32."""


@dataclass(frozen=True)
class Limits:
    """Limits on what an ONNX file can make its reader spend, which a few bytes suffice to ask for.

    Parameters
    ----------
    nodes
        Nodes of the graph after its functions are inlined.
    elements
        Elements of one tensor that the graph computes from one image, as far as the file determines its shape.
    loop_steps
        Steps of a Loop, times those of the Loops around it. A Loop that only its own condition ends has infinitely
        many.
    """

    nodes: float = 50_000
    elements: float = MAX_ELEMENTS
    loop_steps: float = 10_000


_current: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039  # it is frozen


def limits() -> Limits:
    """The limits that hold here."""
    return _current.get()


@contextmanager
def onnx_limits(
    *, nodes: float | None = None, elements: float | None = None, loop_steps: float | None = None
) -> Iterator[None]:
    """Other limits for ONNX files that are read in this ``with`` block; only for files that you trust.

    Parameters
    ----------
    nodes
        Nodes of the graph after its functions are inlined; by default 50,000.
    elements
        Elements of one tensor that the graph computes from one image; by default 2**28.
    loop_steps
        Steps of a Loop, times those of the Loops around it; by default 10,000. ``math.inf`` also allows Loops that
        only their own condition ends.

    Raises
    ------
    ConfigError
        A limit is no positive number.
    """
    given = {"nodes": nodes, "elements": elements, "loop_steps": loop_steps}
    raised = {name: value for name, value in given.items() if value is not None}
    for name, value in raised.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"onnx_limits: {name} must be a positive number, got {value!r}")
    token = _current.set(dataclasses.replace(limits(), **raised))
    try:
        yield
    finally:
        _current.reset(token)


def advice(name: str) -> str:
    """How to raise a limit, for errors."""
    return (
        f"if you trust the file, raise the limit with purifier.onnx_limits({name}=...) (--limit {name}=... on the "
        "command line)"
    )
