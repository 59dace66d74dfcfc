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
        bits = repr(value).encode()
        if isinstance(value, Tensor):
            bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(name.encode() + bits)
    return digest.hexdigest()
