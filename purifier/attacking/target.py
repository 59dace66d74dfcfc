"""Targets: what an attack sees of a guard - logits, gradients along one route, and a count of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..answering import draw, purify
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..errors import GradientError
from ..seeding import SampleGenerator
from ..vocabulary import Route

Loss = Callable[[Tensor], Tensor]
"""Logits (N, K) -> one loss for each image, (N,), which the attack wants to grow."""
ScoredLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and scores (N,) -> one loss for each image, (N,), which the attack wants to grow."""


@dataclass
class Spent:
    """How many images an attack asked logits for, how many gradients, and how many of the purifier's scores."""

    queries: int = 0
    gradients: int = 0
    scores: int = 0


class Target(nn.Module):
    """Logits (N, K) from pixels (N, C, H, W), differentiated along one route.

    Parameters
    ----------
    classifier, purifier
        The two halves of the guard, in evaluation mode.
    route
        ``exact`` through everything; ``bpda`` runs the purifier and differentiates its surrogate (Athalye et
        al. 2018, section 4.1.2); ``oblivious`` is the classifier alone; ``none`` gives logits only.
    generator
        One stream for each of the N images; :meth:`select` follows images that leave the batch.
    eot
        Draws of the purifier's noise a gradient is averaged over (Athalye et al. 2018, section 4.2).

    Raises
    ------
    GradientError
        The route does not exist for this purifier or classifier.
    """

    def __init__(
        self,
        classifier: PixelClassifier,
        purifier: Purifier,
        route: Route,
        generator: SampleGenerator,
        *,
        eot: int = 1,
    ) -> None:
        super().__init__()
        check_route(classifier, purifier, route)
        self.classifier, self.purifier = classifier, purifier
        self.route, self.generator = route, generator
        self.eot = 1 if route == "oblivious" else eot
        self.spent = Spent()
        self.training = False

    def train(self, mode: bool = True) -> Target:
        """Stay in evaluation mode, whatever an attack asks: its modules are somebody else's."""
        return self

    def select(self, keep: Tensor) -> Target:
        """The target for some of the images: ``keep`` is a (N,) mask or positions. Counts are shared."""
        chosen = Target(self.classifier, self.purifier, self.route, self.generator.select(keep), eot=self.eot)
        chosen.spent = self.spent
        return chosen

    def random(self, pixels: Tensor) -> bool:
        """Whether asking twice can give two answers. Draws nothing from the target's own streams."""
        return self.route != "oblivious" and is_random(self.purifier, pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._ask(pixels, scored=False)[0]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (N, K) without gradients, means over ``eot`` draws."""
        with torch.no_grad():
            return torch.stack([self(pixels) for _ in range(self.eot)]).mean(0)

    def logits_with_score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and the purifier's scores (N,) without gradients, means over ``eot`` draws.

        On the route ``oblivious`` the attacker knows of no detector: scores are 0.
        """
        with torch.no_grad():
            return _means([self._ask(pixels, scored=True) for _ in range(self.eot)])

    def gradient(self, pixels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The loss's gradient with respect to ``pixels``, same shape, and the logits (N, K).

        Both are means over ``eot`` draws.

        Raises
        ------
        GradientError
            The route has no gradients, or the purifier or classifier cuts them off.
        """
        (gradient,), logits, _ = self._differentiate(pixels, [lambda logits, score: loss(logits)], scored=False)
        return gradient, logits

    def gradients_with_score(self, pixels: Tensor, *losses: ScoredLoss) -> tuple[list[Tensor], Tensor, Tensor]:
        """The gradients of losses of logits and score, each as ``pixels``; the logits (N, K); the scores (N,).

        All are means over ``eot`` draws and of one pass forward. The score is the purifier's own, differentiated by
        autograd on ``exact`` and ``bpda`` alike: a surrogate stands in for ``purify`` only. On the route ``oblivious``
        the attacker knows of no detector: the losses get scores of 0, whose gradient is 0.

        Raises
        ------
        GradientError
            The route has no gradients, or purifier, score or classifier cut them off.
        """
        return self._differentiate(pixels, losses, scored=True)

    def _differentiate(
        self, pixels: Tensor, losses: Sequence[ScoredLoss], *, scored: bool
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        if self.route == "none":
            raise GradientError("the route none gives logits only; use exact, bpda or oblivious for gradients")
        check_differentiable(self.classifier, self.route)
        gradients, answers = [torch.zeros_like(pixels) for _ in losses], []
        for _ in range(self.eot):
            leaf = pixels.detach().clone().requires_grad_()
            with torch.enable_grad():
                logits, score = self._ask(leaf, scored=scored)
                totals = [loss(logits, score).sum() for loss in losses]
            if scored and self.route != "oblivious" and not score.requires_grad:
                raise GradientError(
                    f"{type(self.purifier).__name__}.score() gives no gradient (detach, no_grad); make it "
                    "differentiable, or attack the classifier alone"
                )
            for place, total in enumerate(totals):
                gradient = None
                if total.requires_grad:
                    kept = place < len(totals) - 1
                    (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, retain_graph=kept)
                    self.spent.gradients += len(pixels)
                elif scored and self.route == "oblivious":
                    gradient = torch.zeros_like(pixels)
                if gradient is None:
                    raise GradientError(
                        f"no gradient arrives along the route {self.route!r}: the purifier or classifier cuts it "
                        "off (detach, no_grad); declare gradient = 'surrogate' and use the route bpda"
                    )
                gradients[place] += gradient / self.eot
            answers.append((logits.detach(), score.detach()))
        return gradients, *_means(answers)

    def _ask(self, pixels: Tensor, *, scored: bool) -> tuple[Tensor, Tensor]:
        """One draw's logits (N, K) and scores (N,); scores are 0 unless asked for and known on this route."""
        self.spent.queries += len(pixels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.route != "none"):
            if self.route == "oblivious":
                return self.classifier(pixels), pixels.new_zeros(len(pixels))
            purified, score = self._purify(pixels, scored=scored)
            return self.classifier(purified), score

    def _purify(self, pixels: Tensor, *, scored: bool) -> tuple[Tensor, Tensor]:
        noise = draw(self.purifier, pixels, self.generator)
        if scored:
            self.spent.scores += len(pixels)
        if self.route == "bpda" and self.purifier.surrogate_purifies and not scored:
            return self.purifier.surrogate(pixels, noise), pixels.new_zeros(len(pixels))
        with torch.set_grad_enabled(torch.is_grad_enabled() and (scored or self.route != "bpda")):
            purified, score = purify(self.purifier, pixels, noise, scored=scored)
        if self.route == "bpda":
            purified = _Bpda.apply(pixels, noise, purified.detach(), self.purifier)
        return purified, pixels.new_zeros(len(pixels)) if score is None else score


def _means(answers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logits, scores = zip(*answers, strict=True)
    return torch.stack(logits).mean(0), torch.stack(scores).mean(0)


def is_random(purifier: Purifier, pixels: Tensor) -> bool:
    """Whether a purifier draws noise for these images, (N, C, H, W)."""
    return draw(purifier, pixels, SampleGenerator(0, range(len(pixels)))) is not None


def check_route(classifier: PixelClassifier, purifier: Purifier, route: Route) -> None:
    """Raise :class:`GradientError`, saying which routes remain, if this one cannot be followed.

    ``oblivious`` exists for every classifier: one without gradients can be queried, the images transferred.
    """
    if route not in get_args(Route):
        raise GradientError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")
    if route in ("exact", "bpda"):
        check_differentiable(classifier, route)
    if route == "exact" and purifier.gradient != "exact":
        raise GradientError(
            f"{type(purifier).__name__} has no exact gradient (it declares a surrogate); use the route bpda"
        )


def check_differentiable(classifier: PixelClassifier, route: Route) -> None:
    """Raise :class:`GradientError` if the classifier has no gradients to give."""
    if not classifier.differentiable:
        raise GradientError(
            f"route {route!r} needs gradients of the classifier, and {classifier.describe()} gives none; "
            "give the torch module instead (package.module:factory with --weights), attack by queries (route none, "
            "with an attack that needs no gradient), or count clean images only (--attack none)"
        )


class _Bpda(torch.autograd.Function):
    """Forward: what purify gave. Backward: the vector-Jacobian product of the surrogate.

    Not ``s + (p - s).detach()``, whose float32 forward value differs from p.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, noise: Tensor | None, purified: Tensor, purifier: Purifier) -> Tensor:
        ctx.save_for_backward(pixels, noise)
        ctx.purifier = purifier
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        pixels, noise = ctx.saved_tensors
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            stand_in = ctx.purifier.surrogate(leaf, noise)
        if not stand_in.requires_grad:
            raise GradientError(f"{type(ctx.purifier).__name__}.surrogate() gives no gradient; make it differentiable")
        (gradient,) = torch.autograd.grad(stand_in, leaf, upstream[0])
        return gradient, None, None, None
