"""What foreign code can change for the whole process: restored afterwards."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

DECISIVE: dict[str, Callable[[], Any]] = {
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "whether torch records gradients": torch.is_grad_enabled,
}
"""Settings that all code relies on, and how each is read."""

SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (np.geterr, lambda modes: np.seterr(**modes)),
    (lambda: list(warnings.filters), lambda filters: _filter_warnings(filters)),
)
"""How each setting is read and written."""


@contextmanager
def kept_settings(seed: int | None = None) -> Iterator[None]:
    """Restore torch's settings, the warning filters and the global random numbers afterwards.

    With ``seed`` the global generators of torch, NumPy and Python begin with it inside, so that foreign code draws the
    same numbers each time, and none that anybody else draws from them.
    """
    before = [read() for read, _ in SETTINGS]
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # torch's own has no types
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        for value, (read, write) in zip(before, SETTINGS, strict=True):
            if read() != value:
                write(value)


def _filter_warnings(filters: list[Any]) -> None:
    warnings.resetwarnings()  # so that Python forgets what it has decided by the other filters
    warnings.filters[:] = filters  # type: ignore[index]  # typeshed's is a Sequence
