"""A hash of everything that a module holds, to name it in a report and to see whether it changes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def sha256_of(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of a module's parameters, its buffers, and whatever else its state holds."""
    digest = hashlib.sha256()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in {**module.state_dict(), **named}.items():
        digest.update(name.encode() + (bits_of(value) if isinstance(value, Tensor) else repr(value).encode()))
    return digest.hexdigest()


def bits_of(tensor: Tensor) -> bytes:
    """Every bit of a tensor's values, whatever its dtype and device."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
