"""Targets: the logits and gradients that an attack gets from a guard along one route, and a count of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from ..answering import draw, purify
from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..errors import GradientError, PluginError
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from ..vocabulary import Route
from .bpda import Bpda
from .scale import Scale

Loss = Callable[[Tensor], Tensor]
"""Logits (N, K) -> one loss per image, (N,), which the attack maximises."""
ScoredLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and scores (N,) -> one loss per image, (N,), which the attack maximises."""


@dataclass
class Spent:
    """How many images an attack asked logits, gradients and purifier scores for."""

    queries: int = 0
    gradients: int = 0
    passes: int = 0
    """As ``gradients``, but gradients of several losses at one point count once."""
    scores: int = 0
    on_query: Callable[[int], None] | None = None
    """Called with the number of images of each query."""


class Target(nn.Module):
    """Logits (N, K) from pixels (N, C, H, W), differentiated along one route.

    They are the classifier's logits normalised per image (see ``Scale``): a factor or offset of its logits would
    otherwise decide how strong an attack is. ``raw`` gives the target with the classifier's own.

    Parameters
    ----------
    classifier, purifier
        The two halves of the guard, in evaluation mode.
    route
        ``exact`` differentiates through everything; ``bpda`` runs the purifier and differentiates its surrogate
        (Athalye et al. 2018, section 4.1.2); ``oblivious`` uses the classifier alone; ``none`` gives logits only.
    generator
        One stream for each of the N images; ``select`` keeps the streams of the selected images.
    eot
        Number of noise draws a gradient is averaged over (Athalye et al. 2018, section 4.2).
    rejection
        What the guard does with rejected images. If they get another answer (``reclassify``, ``abstain`` with a class),
        the target gives that answer, except on the route ``oblivious``; a guard that only marks them gives its logits.

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
        rejection: Rejection | None = None,
    ) -> None:
        super().__init__()
        check_route(classifier, purifier, route)
        self.classifier, self.purifier = classifier, purifier
        self.route, self.generator = route, generator
        self.eot = 1 if route == "oblivious" else eot
        self.rejection = rejection or Rejection()
        self.spent = Spent()
        self._scale: Scale | None = Scale(len(generator))
        self.training = False

    def train(self, mode: bool = True) -> Target:
        """Do nothing: attacks must not take the guard's modules out of evaluation mode."""
        return self

    def select(self, keep: Tensor) -> Target:
        """The target for some of the images: ``keep`` is a mask (N,) or positions. Counts are shared."""
        return self.with_streams(self.generator.select(keep), keep)

    def raw(self) -> Target:
        """The same target with the classifier's own logits. Counts and streams are shared."""
        same = self.with_streams(self.generator, slice(None))
        same._scale = None
        return same

    def with_streams(self, generator: SampleGenerator, at: Tensor | slice) -> Target:
        """The target for the images at positions ``at`` (or a mask) with these noise streams. Counts are shared."""
        other = Target(self.classifier, self.purifier, self.route, generator, eot=self.eot, rejection=self.rejection)
        other.spent = self.spent
        other._scale = None if self._scale is None else self._scale.select(at)
        return other

    def normalised(self, logits: Tensor) -> Tensor:
        """Logits (N, K) of the classifier for the target's images in the target's units; unchanged in ``raw``."""
        return logits if self._scale is None else self._scale(logits)

    def random(self, pixels: Tensor) -> bool:
        """Whether two queries can give different answers. Draws nothing from the target's own streams."""
        return self.route != "oblivious" and is_random(self.purifier, pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._ask(pixels, scored=False)[0]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (N, K) without gradients, averaged over ``eot`` draws."""
        with torch.no_grad():
            return torch.stack([self(pixels) for _ in range(self.eot)]).mean(0)

    def logits_with_score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and the purifier's scores (N,) without gradients, averaged over ``eot`` draws.

        On the route ``oblivious`` the attacker does not know about a detector: scores are 0.
        """
        with torch.no_grad():
            return _means([self._ask(pixels, scored=True) for _ in range(self.eot)])

    def gradient(self, pixels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The gradient of the loss with respect to ``pixels``, same shape, and the logits (N, K).

        Both are averaged over ``eot`` draws.

        Raises
        ------
        GradientError
            The route has no gradients, or the purifier or classifier cuts them off.
        """
        (gradient,), logits, _ = self._differentiate(pixels, [lambda logits, score: loss(logits)], scored=False)
        return gradient, logits

    def gradients_with_score(self, pixels: Tensor, *losses: ScoredLoss) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradients of losses of logits and score, each shaped like ``pixels``; the logits (N, K); the scores (N,).

        All are averaged over ``eot`` draws, with one forward pass per draw. Autograd differentiates the purifier's own
        score on both ``exact`` and ``bpda``: a surrogate replaces ``purify`` only. On the route ``oblivious`` the
        attacker does not know about a detector: the losses get scores of 0, whose gradient is 0.

        Raises
        ------
        GradientError
            The route has no gradients, or the purifier, its score or the classifier cuts them off.
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
                totals = [_checked(loss(logits, score), len(pixels)).sum() for loss in losses]
            if scored and self.route != "oblivious" and not score.requires_grad:
                raise GradientError(
                    f"{type(self.purifier).__name__}.score() has no gradient (detach, no_grad); make it "
                    "differentiable, or attack the classifier alone"
                )
            self.spent.passes += len(pixels)
            for index, total in enumerate(totals):
                gradient = None
                if total.requires_grad:
                    retain = index < len(totals) - 1
                    (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, retain_graph=retain)
                    self.spent.gradients += len(pixels)
                elif scored and self.route == "oblivious":
                    gradient = torch.zeros_like(pixels)
                if gradient is None:
                    raise GradientError(
                        f"no gradient reaches the pixels along the route {self.route!r}: the purifier or classifier "
                        "cuts it off (detach, no_grad, rounding); for the purifier, declare gradient = 'surrogate' and "
                        "use the route bpda; for the classifier, give one without that"
                    )
                gradients[index] += gradient / self.eot
            answers.append((logits.detach(), score.detach()))
        return gradients, *_means(answers)

    def _ask(self, pixels: Tensor, *, scored: bool) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and scores (N,) of one draw; scores are 0 unless requested and known on this route."""
        if not len(pixels):
            raise PluginError(
                "the attack asked its target with 0 images, which many classifiers cannot answer; return early where "
                "no image is left to work on",
                "attack",
            )
        self.spent.queries += len(pixels)
        if scored and self.route != "oblivious":
            self.spent.scores += len(pixels)
        if self.spent.on_query is not None:
            self.spent.on_query(len(pixels))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.route != "none"):
            if self.route == "oblivious":
                return self.normalised(self.classifier(pixels)), pixels.new_zeros(len(pixels))
            answers = self.rejection.answers
            purified, score = self._purify(pixels, scored=scored or answers)
            logits = self.classifier(purified)
            if answers:
                logits = self.rejection.replace(logits, self.rejection.of(score), self.purifier, pixels)
            return self.normalised(logits), score

    def _purify(self, pixels: Tensor, *, scored: bool) -> tuple[Tensor, Tensor]:
        noise = draw(self.purifier, pixels, self.generator)
        # Behind a classifier that rounds, bpda is the strongest route, and an exact purifier is differentiated itself.
        replaces = self.route == "bpda" and not (self.classifier.surrogates and self.purifier.gradient == "exact")
        if replaces and self.purifier.surrogate_purifies and not scored:
            return self.purifier.surrogate(pixels, noise), pixels.new_zeros(len(pixels))
        with torch.set_grad_enabled(torch.is_grad_enabled() and (scored or not replaces)):
            purified, score = purify(self.purifier, pixels, noise, scored=scored)
        if replaces:
            purified = Bpda.apply(pixels, noise, purified.detach(), self.purifier)
        return purified, pixels.new_zeros(len(pixels)) if score is None else score


def _checked(loss: Tensor, count: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.shape != (count,):
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise PluginError(
            f"a loss passed to a target must give one number per image, expected a tensor of shape ({count},), got "
            f"{got}; keep the images apart: no mean or sum over the batch",
            "attack",
        )
    return loss


def _means(answers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logits, scores = zip(*answers, strict=True)
    return torch.stack(logits).mean(0), torch.stack(scores).mean(0)


def is_random(purifier: Purifier, pixels: Tensor) -> bool:
    """Whether a purifier draws noise for these images, (N, C, H, W)."""
    return draw(purifier, pixels, SampleGenerator(0, range(len(pixels)))) is not None


def check_route(classifier: PixelClassifier, purifier: Purifier, route: Route) -> None:
    """Raise ``GradientError`` if the route cannot be followed; the message names a route that can.

    ``oblivious`` exists for every classifier: one without gradients can still be queried, and the images transferred.
    """
    if route not in get_args(Route):
        raise GradientError(f"route must be one of {', '.join(get_args(Route))}, got {route!r}")
    if route in ("exact", "bpda"):
        check_differentiable(classifier, route)
    if route == "exact" and purifier.gradient != "exact":
        raise GradientError(
            f"{type(purifier).__name__} has no exact gradient (it declares a surrogate); use the route bpda"
        )
    if route == "exact" and classifier.surrogates:
        raise GradientError(
            f"{classifier.describe()} has no exact gradient, because {', '.join(classifier.surrogates)} round; use the "
            "route bpda"
        )


def strongest_route(classifier: PixelClassifier, purifier: Purifier) -> Route:
    """The route of gradients on which purifier and classifier hide nothing."""
    return "exact" if purifier.gradient == "exact" and not classifier.surrogates else "bpda"


def check_differentiable(classifier: PixelClassifier, route: Route) -> None:
    """Raise ``GradientError`` if the classifier has no gradients."""
    if not classifier.differentiable:
        raise GradientError(
            f"route {route!r} needs gradients of the classifier, but {classifier.describe()} has none"
            + (f" ({classifier.queries_only})" if classifier.queries_only else "")
            + "; use the torch module instead (package.module:factory with --weights), run query attacks (route none, "
            "with an attack that needs no gradient), or evaluate clean images only (--attack none)"
        )
