"""A hash of everything that a module holds, to name it in a report and to see whether it changes."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch
from torch import Tensor, nn


def sha256_of(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of a module's parameters, its buffers, and whatever else its state holds."""
    digest = hashlib.sha256()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in {**module.state_dict(), **named}.items():
        digest.update(name.encode() + (bits_of(value) if isinstance(value, Tensor) else repr(value).encode()))
    return digest.hexdigest()


def structure_of(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the classes of a module and its parts, and of their plain public attributes."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training" and not key.startswith("_")
        }
        kind = type(part)
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__} {sorted(plain.items())}\n".encode())
    return digest.hexdigest()


def bits_of(tensor: Tensor) -> bytes:
    """Every bit of a tensor's values, whatever its dtype and device."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def fingerprint(value: object) -> str:
    """SHA-256, in hexadecimal, of a tensor, an array or anything else by what it prints, without its address."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        content = f"{value.dtype} {tuple(value.shape)}".encode() + bits_of(value)
    else:
        content = re.sub(r" at 0x[0-9a-f]+", "", str(value)).encode()
    return hashlib.sha256(content).hexdigest()
