"""Muon: steps along the orthogonal matrix next to the mean of a weight's gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MUON_MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration."""
ITERATIONS = 5
SMALLEST = 1e-7
"""What a norm is at least divided by."""
LENGTH = 0.2
"""Of Adam's steps, root mean square, in learning rates."""


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, with Nesterov's momentum and steps of the length of Adam's, so one rate serves both (Liu et
    al. 2025, "Muon is scalable for LLM training", equation 4).

    The steps of ``torch.optim.Muon(weight_decay=0, adjust_lr_fn="match_rms_adamw")``, but that one always iterates in
    bfloat16, which is slow where a CPU only emulates it (``tests/benchmarks/step_speed.py``); this one in ``dtype``.

    Parameters
    ----------
    matrices
        Weights of two dimensions.
    lr
        Learning rate.
    dtype
        What the iteration computes in.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(matrices, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody here hands it a closure
        """Move every weight that has a gradient; its state is one tensor, ``momentum_buffer``."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - MUON_MOMENTUM)
                direction = orthogonal(weight.grad.lerp(mean, MUON_MOMENTUM).to(self.dtype))
                weight.add_(direction, alpha=-group["lr"] * LENGTH * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with singular values brought near 1, by Newton-Schulz iteration.

    Those of at least 0.002 of its Frobenius norm come to lie between 0.68 and 1.21; smaller ones grow, zeros stay.
    """
    first, third, fifth = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=SMALLEST)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
