"""Gradient descent on the energy of a latent, with plain operators only, so it can be exported and differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._variational import Variational

BETA1, BETA2, EPSILON = 0.8, 0.99, 1e-2
"""Adam's constants (Kingma & Ba 2015), with decays for a dozen steps and an epsilon for the gradient of a sum.

The bias correction is part of the rates (the end of their section 2), and epsilon is under the root, whose slope at 0
would be infinite. With the usual epsilon of 1e-8, a latent without effect would follow the rounding errors of its
gradient, which differ between runtimes.
"""

State = tuple[Tensor, Tensor, Tensor]
"""The latent and two accumulators of its shape: the velocity and an unused one, or Adam's two moments."""


@dataclass(frozen=True)
class Settings:
    """How to search for a latent.

    Parameters
    ----------
    start
        ``encoder``: the mean of q(z|x), then prior draws for further restarts. ``random``: prior draws. ``bank``:
        the nearest of ``bank`` decoded prior draws.
    restarts
        Descents per image; the one that ends with the lowest energy is kept.
    steps
        Steps per descent.
    optimizer, momentum
        Gradient descent with ``momentum`` (Polyak), or ``adam``.
    lr
        Step size, divided by ten for the last fifth of the steps. With ``momentum`` it applies to the energy divided
        by the number of values in an image, as if the squared error were a mean.
    beta
        Weight of -log p(z) relative to the squared error.
    """

    start: Literal["encoder", "random", "bank"]
    restarts: int
    steps: int
    optimizer: Literal["momentum", "adam"]
    lr: float
    momentum: float
    beta: float

    @property
    def random_starts(self) -> int:
        """How many of the restarts start at prior draws."""
        return {"random": self.restarts, "encoder": self.restarts - 1, "bank": 0}[self.start]


class Descent:
    """Minimises ``E(z) = |G(z) - x|^2 - beta log p(z)`` over z, where G is the decoder of ``model``."""

    def __init__(self, model: Variational, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.rates = _rates(settings, math.prod(model.config.image_shape))

    def begin(self, latent: Tensor) -> State:
        """The state before the first step."""
        return latent, torch.zeros_like(latent), torch.zeros_like(latent)

    def run(self, pixels: Tensor, state: State, steps: range) -> State:
        """The state after the given ``steps``; pixels are (N, C, H, W), the state's tensors (N, *latent_shape).

        If gradients are needed, the backward pass recomputes each step, so only the states are kept and not the
        decoder's activations.
        """
        needs_gradients = torch.is_grad_enabled() and (pixels.requires_grad or state[0].requires_grad)
        for index in steps:
            if needs_gradients and not torch.compiler.is_exporting():
                state = checkpoint(
                    self._step, pixels, *state, self.rates[index], use_reentrant=False, preserve_rng_state=False
                )
            else:
                state = self._step(pixels, *state, self.rates[index])
        return state

    def loop(self, pixels: Tensor, state: State) -> State:
        """All steps as one loop in the graph, for export."""
        rates = torch.tensor(self.rates, dtype=pixels.dtype, device=pixels.device)

        def unfinished(done: Tensor, *_: Tensor) -> Tensor:
            return done < len(self.rates)

        def body(done: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            latent, first, second = state
            after = self._step(pixels, latent, first, second, rates.index_select(0, done.reshape(1)))
            return (done + 1, *(part.clone() for part in after))

        # while_loop needs carried tensors that are contiguous, no views of others, and not returned unchanged.
        carried = (torch.zeros((), dtype=torch.int64, device=pixels.device), *(part.clone() for part in state))
        while_loop = torch._higher_order_ops.while_loop
        _, latent, first, second = while_loop(unfinished, body, carried)  # type: ignore[no-untyped-call]  # torch's own
        return latent, first, second

    def energy(self, pixels: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """G(z) (N, C, H, W), and E(z) (N,)."""
        image = torch.sigmoid(self.model.decoder(latent))
        energy = (image - pixels).square().flatten(1).sum(1)
        beta = self.settings.beta
        return image, energy - beta * self.model.log_prior(latent) if beta else energy

    def gradient(self, pixels: Tensor, latent: Tensor) -> Tensor:
        """dE/dz, (N, *latent_shape), with the chain rule written out."""
        logits, pull = self.model.decoder.with_pullback(latent)
        image = torch.sigmoid(logits)
        gradient = pull(2 * (image - pixels) * image * (1 - image))
        beta = self.settings.beta
        return gradient - beta * self.model.prior_gradient(latent) if beta else gradient

    def _step(self, pixels: Tensor, latent: Tensor, first: Tensor, second: Tensor, rate: float | Tensor) -> State:
        gradient = self.gradient(pixels, latent)
        if self.settings.optimizer == "momentum":
            first = self.settings.momentum * first + gradient
            return latent - rate * first, first, second
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient.square()
        return latent - rate * first / torch.sqrt(second + EPSILON**2), first, second


def _rates(settings: Settings, values: int) -> Sequence[float]:
    """Each step's rate, for images of ``values`` values.

    Adam's rates include its bias correction (Kingma & Ba 2015, the end of section 2).
    """
    rates = []
    for index in range(settings.steps):
        rate = settings.lr * (1.0 if index < 0.8 * settings.steps else 0.1)
        if settings.optimizer == "adam":
            rate *= math.sqrt(1 - BETA2 ** (index + 1)) / (1 - BETA1 ** (index + 1))
        else:
            rate /= values
        rates.append(rate)
    return rates
