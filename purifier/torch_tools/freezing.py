"""Freeze modules while they are attacked: evaluation mode, no parameter gradients; restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from ..errors import ConfigError


@contextmanager
def freeze(*modules: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Hold modules in evaluation mode on one device; restore every flag and tensor afterwards.

    Meanwhile parameters do not require gradients, so an attack that calls ``backward()`` leaves none in ``.grad``.
    """
    home = _device_of(*modules)
    modes = [(part, part.training) for module in modules for part in module.modules()]
    wants = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    try:
        used = _move(modules, home if device is None else device)
        for module in modules:
            evaluating(module)
        for weight, _ in wants:
            weight.requires_grad_(False)
        yield used
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, wanted in wants:
            weight.requires_grad_(wanted)
        if device is not None:
            _move(modules, home)


def _move(modules: tuple[nn.Module, ...], device: str | torch.device) -> torch.device:
    try:
        used = torch.device(device)
        if used.type == "meta":
            raise RuntimeError("it holds no values, so weights moved there are lost")
        if used.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        for module in modules:
            module.to(used)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used: {error}; choose another, such as cpu") from error
    return used


def _device_of(*modules: nn.Module) -> torch.device:
    found = {tensor.device for module in modules for tensor in chain(module.parameters(), module.buffers())}
    if len(found) > 1:
        raise ConfigError(
            f"classifier and purifier are on {' and '.join(sorted(map(str, found)))}; move them to one device"
        )
    return next(iter(found), torch.device("cpu"))


def evaluating(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode. A torch.export module has its mode baked in; only its flags change."""
    try:
        return module.eval()
    except NotImplementedError:
        for part in module.modules():
            part.training = False
        return module
