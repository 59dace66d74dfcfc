"""Run a check in a copy of this process, so that nothing a guard remembers of it stays behind."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..errors import AuditError
from ..foreign_code import Attempt

SECONDS = 60
"""How long a check may take: a copy of a process with threads can come to a standstill."""
GIVEN, FAILED = b"+", b"-"


def can_copy_process(device: torch.device) -> bool:
    """Whether a check on this device can run in a copy of the process: on Linux, without CUDA.

    Elsewhere threads and devices do not survive in the copy.
    """
    return sys.platform == "linux" and device.type == "cpu" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's own has no types


def in_process_copy(function: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``function`` returns when a fork of this process calls it, on one thread.

    Raises
    ------
    AuditError
        It raises an exception, ends the process, or takes longer than ``SECONDS``.
    """
    content = _content(function)
    if content[:1] == GIVEN:
        return load(content[1:])
    raise AuditError(content[1:].decode() or "a check in a copy of this process ended without an answer")


def _content(function: Callable[[], Mapping[str, Tensor]]) -> bytes:
    """What the child writes; nothing if it takes longer than ``SECONDS``."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that hold a lock; torch's own data loaders fork in the same way.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _answer(function, writing)
    os.close(writing)
    try:
        return _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer(function: Callable[[], Mapping[str, Tensor]], writing: int) -> None:
    """In the child: write the result, and end the process without running anything else of the parent's."""
    content = b""
    with Attempt((BaseException,)) as attempt:
        torch.set_num_threads(1)  # the threads of the parent's pool do not exist here
        content = GIVEN + save({name: value.detach().clone().contiguous() for name, value in function().items()})
    if attempt.error is not None:
        content = FAILED + attempt.cause.encode()
    while content:
        content = content[os.write(writing, content) :]
    os._exit(0)


def _read(reading: int) -> bytes:
    """All that the child writes until it ends; nothing if that takes longer than ``SECONDS``."""
    parts: list[bytes] = []
    end = time.monotonic() + SECONDS
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""
