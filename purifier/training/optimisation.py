"""Optimisation settings and steps: learning rate, schedule, clipping, averaging, precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..specs import build
from ..torch_tools.torchrun import Processes
from .muon import Muon

BFLOAT16 = ("amx_bf16", "bf16")
"""torch's names of the CPU features that multiply in bfloat16 faster than in float32: one on x86, one on Arm."""
MAYBE_BFLOAT16 = "avx512_bf16"
"""The one that does on some CPUs only."""
WARM_UP = 0.1
"""The share of all steps over which the schedule ``cosine`` rises."""


@dataclass(frozen=True)
class Optimisation:
    """The settings of Adam or Muon, and of what happens around their steps.

    Parameters
    ----------
    optimizer
        ``adam``; or ``muon``, which uses Muon for the weights of convolutions and linear layers, flattened to matrices
        after their first dimension, and Adam for all others. One learning rate serves both
        (``Muon``).
    lr
        Learning rate, before the schedule's factor.
    schedule
        ``constant``, or ``cosine``: half a cosine from 1 to 0, times a linear rise over the first tenth of the steps.
    clip
        Largest L2 norm of the gradient of all weights together; 0 for no limit.
    ema
        Decay per step of the exponential moving average of the weights, which the checkpoint holds; (1 + t) / (10 + t)
        at step t while that is smaller. 0 saves the weights themselves.
    precision
        ``bfloat16`` runs layers under torch.autocast, and Muon's iteration, in bfloat16; weights and sums stay float32.
        ``auto`` chooses ``bfloat16`` where that is faster, else ``float32``: on GPUs with bfloat16, x86 CPUs with AMX
        and Arm CPUs with BF16. On other x86 CPUs with AVX-512's it times a convolution, and chooses ``float32`` if
        purifier or classifier have grouped ones. A run that is resumed keeps the precision that it began with.
    augment
        ``shift`` moves each image by up to two pixels in each direction, repeating the border; ``flip`` also mirrors
        one image in two. ``crop`` moves by up to an eighth of each side (4 pixels of 32, 28 of 224), with the border
        reflected, and mirrors one image in two: the usual augmentation of CIFAR-10. All are random.
    """

    optimizer: Literal["adam", "muon"] = "adam"
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 0.0
    ema: float = 0.0
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    augment: Literal["none", "shift", "flip", "crop"] = "none"

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr: expected a positive number, got {self.lr!r}")
        if not (self.clip >= 0 and math.isfinite(self.clip)):
            raise ConfigError(f"clip: expected a number of at least 0, got {self.clip!r}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema: expected a decay in [0, 1), such as 0.999, got {self.ema!r}")

    def with_given(self, given: Mapping[str, object]) -> Optimisation:
        """These settings, replaced by those in ``given`` that are not None."""
        chosen = {name: value for name, value in given.items() if value is not None}
        return build(Optimisation, {**asdict(self), **chosen}, what="training")

    def on(self, device: torch.device, before: object, gains: Callable[[], bool], processes: Processes) -> Optimisation:
        """These settings with the precision ``auto`` resolved for a device, or as a resumed run had it ``before``.

        ``gains`` finds out whether bfloat16 is faster on a CPU where it may be; it has to be in all processes.
        """
        if self.precision != "auto":
            return self
        if before in ("bfloat16", "float32"):
            return replace(self, precision="bfloat16" if before == "bfloat16" else "float32")
        everywhere = processes.smallest(_has_bfloat16(device, gains), device)
        return replace(self, precision="bfloat16" if everywhere else "float32")

    def rate(self, done: float) -> float:
        """The learning rate after the share ``done`` of all steps, in [0, 1)."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * min(1.0, done / WARM_UP + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which a step computes."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class Follower:
    """Steps the optimizers, and keeps the moving average of the weights.

    ``trained``: whether the weights have been trained before; then they are the first value of the average.
    """

    def __init__(self, module: nn.Module, settings: Optimisation, *, trained: bool = False) -> None:
        self.module, self.settings = module, settings
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.matrices = _matrices(module) if settings.optimizer == "muon" else {}
        """Weights -> matrices for Muon that share their memory; so weights must only be changed in place."""
        others = [weight for weight in self.weights if weight not in self.matrices]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:
            self.optimizers.append(torch.optim.Adam(others, lr=settings.lr))
        if self.matrices:
            dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
            self.optimizers.append(Muon(self.matrices.values(), settings.lr, dtype))
        self.average = copy.deepcopy(module).requires_grad_(False).eval() if settings.ema else None
        self.averaged = torch.full((), int(trained), dtype=torch.int64)
        """How many steps are in the average."""

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of a scalar."""
        for weight in (*self.weights, *self.matrices.values()):
            weight.grad = None
        torch.autograd.backward(loss)

    def update(self, done: float) -> None:
        """One step down the gradient, after the share ``done`` of all steps."""
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        for weight, matrix in self.matrices.items():
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(done)
            optimizer.step()
        if self.average is not None:
            self._update(self.average)

    @torch.no_grad()
    def _update(self, average: nn.Module) -> None:
        # With ``ema`` alone, the initial weights would dominate the average of a short run.
        count = int(self.averaged)
        decay = min(self.settings.ema, (1 + count) / (10 + count)) if count else 0.0
        for mean, value in zip(average.state_dict().values(), self.module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
        self.averaged += 1

    def moments(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """The optimizer's state for a weight; zeros before its first step."""
        held = self.matrices.get(weight, weight)
        state = next((optimizer.state[held] for optimizer in self.optimizers if held in optimizer.state), None)
        if state:
            return dict(state)
        if weight in self.matrices:
            return {"momentum_buffer": torch.zeros_like(held)}
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(held), "exp_avg_sq": torch.zeros_like(held)}

    def bytes_of_moments(self) -> int:
        """How much memory the optimizers' states take, most of which is allocated at the first step."""
        held = ((1 if weight in self.matrices else 2) * weight.numel() * weight.itemsize for weight in self.weights)
        return sum(held)

    def remember(self, weight: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Restore the state that ``moments`` returned."""
        held = self.matrices.get(weight, weight)
        optimizer = self.optimizers[-1 if weight in self.matrices else 0]
        optimizer.state[held] = {
            key: value if key == "step" else value.to(weight.device) for key, value in moments.items()
        }

    @property
    def result(self) -> nn.Module:
        """The module that training produces: the average, or the module itself."""
        return self.module if self.average is None else self.average


def _has_bfloat16(device: torch.device, gains: Callable[[], bool]) -> bool:
    """Whether a device is faster in bfloat16; emulation is at least ten times as slow as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in BFLOAT16) or bool(has.get(MAYBE_BFLOAT16) and gains())


def _matrices(module: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """The weights of linear layers and convolutions, each as a matrix; Adam takes those that are not contiguous."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd))
    weights = [weight for layer in layers for name, weight in layer.named_parameters(recurse=False) if name == "weight"]
    fitting = [weight for weight in weights if weight.requires_grad and weight.is_contiguous()]
    return {weight: nn.Parameter(weight.detach().view(len(weight), -1)) for weight in fitting}
