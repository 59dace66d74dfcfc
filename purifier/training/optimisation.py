"""How weights follow their gradients: rate, schedule, clipping, averaging, precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..specs import build
from .muon import Muon

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What a CPU that multiplies in bfloat16 has one of, in torch's words: x86's two, Arm's."""
WARM_UP = 0.1
"""The share of all steps over which the schedule ``cosine`` rises."""


@dataclass(frozen=True)
class Optimisation:
    """Adam's or Muon's settings, and what is done around their steps.

    Parameters
    ----------
    optimizer
        ``adam``; or ``muon`` for the weights of convolutions and linear layers, flattened to matrices after their first
        dimension, and Adam for all others; one rate serves both (:class:`~purifier.training.muon.Muon`).
    lr
        Learning rate, before the schedule's factor.
    schedule
        ``constant``, or ``cosine``: half a cosine from 1 to 0, times a linear rise over the first tenth of the steps.
    clip
        Largest L2 norm of the gradient of all weights together; 0 for no limit.
    ema
        Decay a step of the exponential moving average of the weights that the checkpoint gets, (1 + t) / (10 + t) at
        step t while that is less; 0 for the weights themselves.
    precision
        ``bfloat16`` computes layers in torch.autocast's, and Muon's iteration; weights and sums stay float32. ``auto``:
        that where the device has instructions for it, else ``float32``.
    augment
        ``shift`` moves each image up to two pixels each way, ``flip`` also mirrors one in two, by chance.
    """

    optimizer: Literal["adam", "muon"] = "adam"
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 0.0
    ema: float = 0.0
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    augment: Literal["none", "shift", "flip"] = "none"

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr: expected a positive number, got {self.lr!r}")
        if not (self.clip >= 0 and math.isfinite(self.clip)):
            raise ConfigError(f"clip: expected a number of at least 0, got {self.clip!r}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema: expected a decay in [0, 1), such as 0.999, got {self.ema!r}")

    def with_given(self, given: Mapping[str, object]) -> Optimisation:
        """These settings, with those in their place that are not None."""
        chosen = {name: value for name, value in given.items() if value is not None}
        return build(Optimisation, {**asdict(self), **chosen}, what="training")

    def on(self, device: torch.device) -> Optimisation:
        """These settings, with the precision ``auto`` settled for a device."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if _has_bfloat16(device) else "float32")

    def rate(self, done: float) -> float:
        """The learning rate when the share ``done`` of all steps, in [0, 1), is over."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * min(1.0, done / WARM_UP + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))

    def autocast(self, device: torch.device) -> torch.autocast:
        """What a step computes in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class Follower:
    """Optimizers, and the average of the weights that follows them."""

    def __init__(self, module: nn.Module, settings: Optimisation) -> None:
        self.module, self.settings = module, settings
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.matrices = _matrices(module) if settings.optimizer == "muon" else {}
        """Weights in the shape in which Muon takes them; the memory is the weights' own, so they must stay in place."""
        others = [weight for weight in self.weights if weight not in self.matrices]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:
            self.optimizers.append(torch.optim.Adam(others, lr=settings.lr))
        if self.matrices:
            dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
            self.optimizers.append(Muon(self.matrices.values(), settings.lr, dtype))
        self.average = copy.deepcopy(module).requires_grad_(False).eval() if settings.ema else None
        self.averaged = torch.zeros((), dtype=torch.int64)
        """How many steps the average holds."""

    def step(self, loss: Tensor, done: float) -> None:
        """One step down the gradient of a scalar, when the share ``done`` of all steps is over."""
        for weight in (*self.weights, *self.matrices.values()):
            weight.grad = None
        torch.autograd.backward(loss)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        for weight, matrix in self.matrices.items():
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(done)
            optimizer.step()
        if self.average is not None:
            self._follow(self.average)

    @torch.no_grad()
    def _follow(self, average: nn.Module) -> None:
        # A slow decay would keep the first weights for as many steps as a short run has.
        count = int(self.averaged)
        decay = min(self.settings.ema, (1 + count) / (10 + count)) if count else 0.0
        for mean, value in zip(average.state_dict().values(), self.module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
        self.averaged += 1

    def moments(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """What the optimizer remembers of a weight's gradients; before the first of them, zeros."""
        held = self.matrices.get(weight, weight)
        known = next((optimizer.state[held] for optimizer in self.optimizers if held in optimizer.state), None)
        if known:
            return dict(known)
        if weight in self.matrices:
            return {"momentum_buffer": torch.zeros_like(held)}
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(held), "exp_avg_sq": torch.zeros_like(held)}

    def remember(self, weight: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Put what :meth:`moments` gave back in its place."""
        held = self.matrices.get(weight, weight)
        optimizer = self.optimizers[-1 if weight in self.matrices else 0]
        optimizer.state[held] = {
            key: value if key == "step" else value.to(weight.device) for key, value in moments.items()
        }

    @property
    def result(self) -> nn.Module:
        """The module that training is for: the average, or the module itself."""
        return self.module if self.average is None else self.average


def _has_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies in bfloat16; elsewhere that is emulated, ten times and more as slow as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16)


def _matrices(module: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """The weights of linear layers and convolutions, each as a matrix; not contiguous ones are left to Adam."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd))
    weights = [weight for layer in layers for name, weight in layer.named_parameters(recurse=False) if name == "weight"]
    fitting = [weight for weight in weights if weight.requires_grad and weight.is_contiguous()]
    return {weight: nn.Parameter(weight.detach().view(len(weight), -1)) for weight in fitting}
