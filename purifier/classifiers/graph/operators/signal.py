"""Fourier transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..node import Node
from ..table import Call, operator


@operator("DFT", since=17, host=(1, 2))
def fourier(node: Node) -> Call:
    inverse, half = bool(node.integer("inverse")), bool(node.integer("onesided"))
    fixed = node.integer("axis", 1) if node.opset < 20 else None

    def run(given: Tensor, length: Any = None, axis: Any = None) -> Any:
        along = fixed if fixed is not None else -2 if axis is None else int(axis)
        along = along % given.ndim
        size = given.shape[along] if length is None else int(length)
        if inverse and half:
            whole = torch.view_as_complex(given.contiguous())
            size = 2 * (given.shape[along] - 1) if length is None else size
            return torch.fft.irfft(whole, size, along).unsqueeze(-1)
        if given.shape[-1] == 1:
            values: Tensor = given.squeeze(-1)
        else:
            values = torch.view_as_complex(given.contiguous())
        found = torch.fft.ifft(values, size, along) if inverse else torch.fft.fft(values, size, along)
        if half:
            found = found.narrow(along, 0, size // 2 + 1)
        return torch.view_as_real(found)

    return run


@operator("STFT", since=17, host=(1, 3))
def short_time_fourier(node: Node) -> Call:
    half = bool(node.integer("onesided", 1))

    def run(given: Tensor, step: Tensor, window: Any = None, length: Any = None) -> Tensor:
        size = int(length) if length is not None else window.shape[0]
        is_real = given.ndim == 2 or given.shape[-1] == 1
        values = given.reshape(given.shape[:2]) if is_real else torch.view_as_complex(given.contiguous())
        frames = values.unfold(1, size, int(step))
        if window is not None:
            frames = frames * window
        found = torch.fft.fft(frames, size, -1)
        return torch.view_as_real(found.narrow(-1, 0, size // 2 + 1) if half else found)

    return run
