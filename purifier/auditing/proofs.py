"""Proofs from a purifier's own bounds: which answers of the guard no image within a threat changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..answering import purifier_input
from ..attacking.threat import Threat
from ..contracts.bounded import Bounded, BoundTrained
from ..contracts.purifier import Purifier, dtype_of
from ..errors import ConfigError, PluginError
from ..foreign_code import explained
from ..guards.session import GuardedSession
from ..onnx.runtime import CPU
from ..torch_tools.rounding import factor_rounding
from ..vocabulary import Norm
from .parts import AuditedParts
from .setup import AuditSetup, Batch
from .subject import NO_ANSWER

CLOSE = 1e-3
"""An output counts as unanswered if the difference of its two largest logits is less than this share of them, so that
rounding in another batch might exchange them."""
EXTRA = 1e-6
"""Budgets are proven with so much more for each pixel: converting pixels to float32 images and back rounds."""
STEPS = 16
"""Radii between the budgets asked for are looked for in so many steps: quarters of the largest distance until one is
proven, then halves of the interval."""
SHOWN = 3
"""A message names so many components."""
T = TypeVar("T")


class Prover:
    """Asks a purifier's bounds about a guard.

    Parameters
    ----------
    parts, setup
        The guard, and how it is asked.
    shape
        (C, H, W) of the images.
    random
        Whether the purifier draws noise.

    Raises
    ------
    ConfigError
        The purifier has no bounds, or they do not cover this guard; or the classifier answers the image of a component
        with another class than the component's.
    PluginError
        The purifier's outputs are not images, or it fails.
    """

    def __init__(self, parts: AuditedParts, setup: AuditSetup, shape: Sequence[int], *, random: bool) -> None:
        self._purifier, self._setup, self._values = parts.purifier, setup, math.prod(shape)
        self.bounded = _bounded(parts.in_front)
        _check_covered(parts, random=random)
        self._factors = factor_rounding(setup.device)
        preprocessing = parts.classifier.preprocessing
        self._extra = EXTRA * max([1.0, *(abs(mean) / preprocessing.scale for mean in preprocessing.mean)])
        with torch.no_grad():
            self._answers = self._answers_to(self._ask(self.bounded.outputs), shape)
        self._check_answers()

    def largest(self, norm: Norm) -> float:
        """A distance within which every image can become every other."""
        return {"linf": 1.0, "l2": math.sqrt(self._values), "l1": float(self._values)}[norm]

    def check_norm(self, norm: Norm) -> None:
        """Raise ``ConfigError`` if there are no bounds for a norm."""
        if norm not in self.bounded.bounded_norms:
            known = ", ".join(self.bounded.bounded_norms)
            raise ConfigError(f"norm: {type(self._purifier).__name__} has bounds for {known}, got {norm!r}")

    @torch.no_grad()
    def holds(self, batch: Batch, answers: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
        """For which images the guard provably gives ``answers`` (n,) to all images within ``eps``, bool (n,), CPU.

        All outputs of the purifier that can be reached must be answered alike. ``eps`` is in pixel units, one number or
        (n,).
        """
        extra = self._extra * self.largest(norm)
        budgets = torch.as_tensor(eps, dtype=torch.float64, device=self._setup.device).expand(len(answers)) + extra
        own = purifier_input(batch.pixels, self._purifier)
        reachable = self._ask(partial(self.bounded.reachable, own, norm, budgets, self._factors))
        wanted, name = (len(answers), len(self._answers)), type(self._purifier).__name__
        if not isinstance(reachable, Tensor) or reachable.dtype != torch.bool or tuple(reachable.shape) != wanted:
            got = (reachable.dtype, tuple(reachable.shape)) if isinstance(reachable, Tensor) else type(reachable)
            raise PluginError(f"{name}.reachable must return bool {wanted}, got {got}", name)
        if not reachable.any(1).all():
            raise PluginError(f"{name}.reachable must find an output for each image, got one without", name)
        given = answers.to(self._answers.device)
        alike = self._answers == given[:, None]
        return ((alike | ~reachable).all(1) & (given != NO_ANSWER)).cpu()

    def radii(self, batch: Batch, answers: Tensor, norm: Norm, budgets: Sequence[float]) -> Tensor:
        """The largest distances found at which ``holds`` is true, (n,) on the CPU; 0 for none. Exact at ``budgets``."""
        low, high = (torch.full((len(answers),), end, dtype=torch.float64) for end in (0.0, self.largest(norm)))
        for budget in sorted(budgets):
            _narrow(low, high, torch.full_like(low, budget), self.holds(batch, answers, norm, budget))
        for _ in range(STEPS):
            tried = torch.where(low > 0, (low + high) / 2, high / 4)
            _narrow(low, high, tried, self.holds(batch, answers, norm, tried))
        return low

    def _ask(self, question: Callable[[], T]) -> T:
        """What the purifier's bounds say; an exception of its author's code becomes an error that names it."""
        name = type(self._purifier).__name__
        with explained(f"the bounds of {name} fail", partial(PluginError, name=name), "fix outputs() and reachable()"):
            return question()

    def _answers_to(self, outputs: Tensor, shape: Sequence[int]) -> Tensor:
        """The classifier's answer to each output of the purifier, (K,); ``NO_ANSWER`` where it might be another."""
        if not isinstance(outputs, Tensor) or tuple(outputs.shape[1:]) != tuple(shape):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            name = type(self._purifier).__name__
            raise PluginError(f"{name}.outputs must return images (K, {', '.join(map(str, shape))}), got {got}", name)
        if not len(outputs) or not ((outputs >= 0) & (outputs <= 1)).all():
            name = type(self._purifier).__name__
            raise PluginError(f"{name}.outputs must return one or more images in [0, 1]", name)
        subject, seed = self._setup.subjects["undefended"], self._setup.seed
        parts = torch.split(outputs, self._setup.batch_size)
        logits = torch.cat([subject.ask(part, seed, range(len(part))).logits for part in parts]).float()
        first, second = logits.topk(2).values.unbind(1)
        sure = first - second > CLOSE * logits.abs().amax(1)  # never with NaN
        return logits.argmax(1).masked_fill(~sure, NO_ANSWER)

    def _check_answers(self) -> None:
        """Raise unless each component that stands for a class is answered with it."""
        if not isinstance(self._purifier, BoundTrained):
            return
        wrong = [(place, answer) for place, answer in enumerate(self._answers.tolist()) if place != answer]
        if wrong:
            named = ", ".join(f"{place} with {_class_name(answer)}" for place, answer in wrong[:SHOWN])
            more = f" and {len(wrong) - SHOWN} others" if len(wrong) > SHOWN else ""
            raise ConfigError(
                "the classifier must answer each component's image with the component's class, but it answers that of "
                f"component {named}{more}; train the purifier for this classifier"
            )


@dataclass(frozen=True)
class Proofs:
    """What is proven in an audit: the threats that the purifier has bounds for."""

    prover: Prover | None
    threats: Sequence[Threat]

    def of(self, batch: Batch, answers: Tensor) -> Mapping[str, Tensor]:
        """For each threat, by its ``key_of``, the images whose ``answers`` (n,) provably stay, bool (n,)."""
        if self.prover is None:
            return {}
        return {key_of(one): self.prover.holds(batch, answers, one.norm, one.eps) for one in self.threats}


NO_PROOFS = Proofs(None, ())


def proofs_for(
    parts: AuditedParts, setup: AuditSetup, shape: Sequence[int], threats: Sequence[Threat], *, random: bool
) -> tuple[Proofs, list[str]]:
    """What can be proven about a guard, and why the rest cannot although its purifier has bounds."""
    if not isinstance(parts.in_front, Bounded):
        return NO_PROOFS, []
    reasons: list[str] = []
    try:
        prover = Prover(parts, setup, shape, random=random)
        for norm in dict.fromkeys(threat.norm for threat in threats):
            try:
                prover.check_norm(norm)
            except ConfigError as error:
                reasons.append(f"certificates: {error}")
    except ConfigError as error:
        return NO_PROOFS, [f"certificates: {error}"]
    return Proofs(prover, [one for one in threats if one.norm in prover.bounded.bounded_norms]), reasons


def key_of(threat: Threat) -> str:
    """A name for a threat that no other one has."""
    return f"{threat.norm} {threat.eps!r}"


def _bounded(purifier: Purifier | None) -> Bounded:
    advice = "randomised smoothing needs none (sigma, --sigma)"
    if purifier is None:
        raise ConfigError(f"a classifier alone has no bounds; {advice}")
    if not isinstance(purifier, Bounded):
        raise ConfigError(f"the purifier {type(purifier).__name__} has no bounds; {advice}")
    return purifier


def _check_covered(parts: AuditedParts, *, random: bool) -> None:
    """Raise ``ConfigError`` if the guard does anything that bounds of the purifier in float32 say nothing about."""
    if parts.rejection.active:
        raise ConfigError("bounds do not cover rejection; make the guard with on_reject='ignore'")
    if random:
        raise ConfigError("bounds do not cover a purifier that draws noise; use one that draws none")
    dtype, taken = dtype_of(parts.purifier), parts.classifier.preprocessing.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"bounds hold for float32, but the purifier's weights are {dtype}; use .float()")
    if taken not in ("float32", "float64"):
        raise ConfigError(
            f"the classifier takes images of {taken}, so that the guard rounds pixels before it purifies them, by more "
            "than bounds allow for; use a classifier that takes float32"
        )
    if isinstance(parts.guard, GuardedSession) and parts.guard.get_providers() != [CPU]:
        raise ConfigError(
            f"bounds hold for float32, but the session runs on {', '.join(parts.guard.get_providers())}, which may "
            f"compute with less; make the guard with providers=[{CPU!r}]"
        )


def _narrow(low: Tensor, high: Tensor, tried: Tensor, holds: Tensor) -> None:
    """Move the ends of the intervals that the radii are in to what was tried, where that is inside."""
    within = (tried > low) & (tried < high)
    low.copy_(torch.where(within & holds, tried, low))
    high.copy_(torch.where(within & ~holds, tried, high))


def _class_name(answer: int) -> str:
    return "no class clearly" if answer == NO_ANSWER else f"class {answer}"
