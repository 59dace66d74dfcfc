"""The base class of attacks, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, get_args

from torch import Tensor

from ..contracts.registry import Registry
from ..errors import PluginError
from ..seeding import SampleGenerator
from ..vocabulary import Needs
from .target import Target
from .threat import Threat


class Attack(ABC):
    """Looks for adversarial images; usually a frozen dataclass whose fields are its options."""

    needs: ClassVar[Needs]
    """What the attack needs: gradients; gradients and the latent space; logits only; or predicted labels only."""
    norms: ClassVar[tuple[str, ...]]
    """The norms that the attack supports: any of ``linf``, ``l2`` and ``l1``."""
    needs_threshold: ClassVar[bool] = False
    """Whether it evades a threshold, so that it cannot attack a guard whose purifier is not calibrated."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if getattr(cls, "needs", None) not in get_args(Needs):
            raise PluginError(f"{cls.__name__} must declare needs, one of {', '.join(get_args(Needs))}", cls.__name__)
        if not isinstance(getattr(cls, "norms", None), tuple):
            raise PluginError(f"{cls.__name__} must declare norms, a tuple such as ('linf',)", cls.__name__)

    @abstractmethod
    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        """Return adversarial pixels of the same shape; the core projects them into the threat and judges them.

        ``pixels`` (N, C, H, W) in [0, 1], ``labels`` (N,) int64; do not change either in place.
        """


attacks: Registry[Attack] = Registry("purifier.attacks", Attack)
