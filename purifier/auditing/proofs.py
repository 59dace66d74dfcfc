"""Proofs from a purifier's own bounds: which answers of the guard no image within a threat changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..answering import purifier_input
from ..attacking.threat import Threat
from ..contracts.bounded import Bounded, BoundTrained
from ..contracts.purifier import Purifier, dtype_of
from ..errors import ConfigError, PluginError
from ..torch_tools.rounding import factor_rounding
from ..vocabulary import Norm
from .parts import AuditedParts
from .setup import AuditSetup, Batch

NO_ANSWER = -1
"""Stands for the class where there is none."""
CLOSE = 1e-3
"""An output counts as unanswered if the difference of its two largest logits is less than this share of them, so that
rounding in another batch might exchange them."""
EXTRA = 1e-6
"""Budgets are proven with so much more for each pixel: converting pixels to the classifier's images and back rounds."""
HALVINGS = 12
"""Between the budgets asked for, radii are found by halving the interval they are in this often."""
SHOWN = 3
"""A message names so many components."""


def bounded_purifier(purifier: Purifier | None) -> Bounded:
    """The purifier as one with bounds; raises ``ConfigError`` if it has none."""
    advice = "certify it by randomised smoothing: give sigma (--sigma)"
    if purifier is None:
        raise ConfigError(f"certify: a classifier alone has no bounds; {advice}")
    if not isinstance(purifier, Bounded):
        raise ConfigError(f"certify: the purifier {type(purifier).__name__} has no bounds; {advice}")
    return purifier


class Prover:
    """Asks a purifier's bounds about a guard.

    Parameters
    ----------
    random
        Whether the purifier draws noise.

    Raises
    ------
    ConfigError
        The purifier has no bounds, or they do not cover this guard; or the classifier answers the image of a component
        with another class than the component's.
    PluginError
        The purifier's outputs are not images.
    """

    def __init__(self, parts: AuditedParts, setup: AuditSetup, shape: Sequence[int], *, random: bool) -> None:
        self.bounded = bounded_purifier(parts.in_front)
        self._purifier, self._setup, self._values = parts.purifier, setup, math.prod(shape)
        self._factors = factor_rounding(setup.device)
        _check_covered(parts, random=random)
        with torch.no_grad():
            self._answers = self._answers_to(self.bounded.outputs(), shape)
        self._check_answers()

    def check_norm(self, norm: Norm) -> None:
        """Raise ``ConfigError`` if there are no bounds for a norm."""
        if norm not in self.bounded.bounded_norms:
            known = ", ".join(self.bounded.bounded_norms)
            raise ConfigError(f"norm: {type(self._purifier).__name__} has bounds for {known}, got {norm!r}")

    @torch.no_grad()
    def holds(self, batch: Batch, answers: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
        """For which images the guard provably gives ``answers`` (n,) to all images within ``eps``, bool (n,).

        All outputs of the purifier that can be reached must be answered alike. ``eps`` is in pixel units, one number or
        (n,).
        """
        extra = EXTRA if norm == "linf" else EXTRA * self._values**0.5
        budgets = torch.as_tensor(eps, dtype=torch.float64, device=self._setup.device).expand(len(answers)) + extra
        reachable = self.bounded.reachable(purifier_input(batch.pixels, self._purifier), norm, budgets, self._factors)
        alike = self._answers == answers.to(self._answers.device)[:, None]
        return ((alike | ~reachable).all(1).cpu() & (answers.cpu() != NO_ANSWER)).cpu()

    def radii(self, batch: Batch, answers: Tensor, norm: Norm, budgets: Sequence[float]) -> Tensor:
        """The largest distances found at which ``holds`` is true, (n,) on the CPU; 0 for none. Exact at ``budgets``."""
        cap = 1.0 if norm == "linf" else self._values**0.5
        low, high = (torch.full((len(answers),), end, dtype=torch.float64) for end in (0.0, cap))
        for budget in sorted(budgets):
            _narrow(low, high, torch.full_like(low, budget), self.holds(batch, answers, norm, budget))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            _narrow(low, high, middle, self.holds(batch, answers, norm, middle))
        return low

    def _answers_to(self, outputs: Tensor, shape: Sequence[int]) -> Tensor:
        """The classifier's answer to each output of the purifier, (K,); ``NO_ANSWER`` where it might be another."""
        if not isinstance(outputs, Tensor) or tuple(outputs.shape[1:]) != tuple(shape):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            name = type(self._purifier).__name__
            raise PluginError(f"{name}.outputs must return images (K, {', '.join(map(str, shape))}), got {got}", name)
        given = self._setup.subjects["undefended"].ask(outputs.float(), self._setup.seed, range(len(outputs)))
        first, second = given.logits.topk(2).values.unbind(1)
        sure = first - second > CLOSE * given.logits.abs().amax(1)  # never with NaN
        return given.logits.argmax(1).masked_fill(~sure, NO_ANSWER)

    def _check_answers(self) -> None:
        """Raise unless each component that stands for a class is answered with it."""
        if not isinstance(self._purifier, BoundTrained):
            return
        wrong = [(place, answer) for place, answer in enumerate(self._answers.tolist()) if place != answer]
        if wrong:
            named = ", ".join(f"{place} with {_class_name(answer)}" for place, answer in wrong[:SHOWN])
            more = f" and {len(wrong) - SHOWN} others" if len(wrong) > SHOWN else ""
            raise ConfigError(
                "certify: the classifier must answer each component's image with the component's class, but it answers "
                f"that of component {named}{more}; train the purifier for this classifier"
            )


@dataclass(frozen=True)
class Proofs:
    """What is proven in an audit: the threats that the purifier has bounds for."""

    prover: Prover | None
    threats: Sequence[Threat]

    def of(self, batch: Batch, answers: Tensor) -> Mapping[str, Tensor]:
        """For each threat, by its text, the images whose ``answers`` (n,) provably stay, bool (n,)."""
        if self.prover is None:
            return {}
        return {str(one): self.prover.holds(batch, answers, one.norm, one.eps) for one in self.threats}


NO_PROOFS = Proofs(None, ())


def proofs_for(
    parts: AuditedParts, setup: AuditSetup, shape: Sequence[int], threats: Sequence[Threat], *, random: bool
) -> tuple[Proofs, list[str]]:
    """What can be proven about a guard, and why the rest cannot although its purifier has bounds."""
    if not isinstance(parts.in_front, Bounded):
        return NO_PROOFS, []
    try:
        prover = Prover(parts, setup, shape, random=random)
    except ConfigError as error:
        return NO_PROOFS, [str(error)]
    covered = [threat for threat in threats if threat.norm in prover.bounded.bounded_norms]
    return Proofs(prover, covered), []


def _narrow(low: Tensor, high: Tensor, tried: Tensor, holds: Tensor) -> None:
    """Move the ends of the intervals that the radii are in to what was tried, where that is inside."""
    within = (tried > low) & (tried < high)
    low.copy_(torch.where(within & holds, tried, low))
    high.copy_(torch.where(within & ~holds, tried, high))


def _class_name(answer: int) -> str:
    return "no class clearly" if answer == NO_ANSWER else f"class {answer}"


def _check_covered(parts: AuditedParts, *, random: bool) -> None:
    if parts.rejection.active:
        raise ConfigError("certify: bounds do not cover rejection; certify the guard with on_reject='ignore'")
    if random:
        raise ConfigError("certify: bounds do not cover a purifier that draws noise; give sigma (--sigma)")
    dtype = dtype_of(parts.purifier)
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"certify: bounds hold for float32, but the purifier's weights are {dtype}; use .float()")
