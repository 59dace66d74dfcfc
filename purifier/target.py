"""Targets: what an attack sees of a guard - logits, gradients along one route, and a count of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .classifier import PixelClassifier
from .errors import AuditError, GradientError
from .interfaces import Purifier
from .seeding import SampleGenerator

Route = Literal["exact", "bpda", "oblivious", "none"]
Loss = Callable[[Tensor], Tensor]
"""Logits (N, K) -> one loss for each image, (N,), which the attack wants to grow."""


@dataclass
class Spent:
    """How many images an attack asked logits for, and how many it asked gradients for."""

    queries: int = 0
    gradients: int = 0


class Target(nn.Module):
    """Logits (N, K) from pixels (N, C, H, W), differentiated along one route.

    Parameters
    ----------
    classifier, purifier
        The two halves of the guard, in evaluation mode.
    route
        ``exact`` through everything; ``bpda`` runs the purifier and differentiates its surrogate (Athalye et al.
        2018, section 4.1.2); ``oblivious`` is the classifier alone; ``none`` gives logits without gradients.
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
        self.route, self.generator, self.eot = route, generator, eot
        self.spent = Spent()

    def select(self, keep: Tensor) -> Target:
        """The target for some of the images: ``keep`` is a (N,) mask or positions. Counts are shared."""
        chosen = Target(
            self.classifier, self.purifier, self.route, self.generator.select(keep), eot=self.eot
        )
        chosen.spent = self.spent
        return chosen

    def forward(self, pixels: Tensor) -> Tensor:
        self.spent.queries += len(pixels)
        if self.route == "none":
            with torch.no_grad():
                return self.classifier(self._purify(pixels))  # type: ignore[no-any-return]
        return self.classifier(pixels if self.route == "oblivious" else self._purify(pixels))  # type: ignore[no-any-return]

    def gradient(self, pixels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The loss's gradient with respect to ``pixels``, same shape, and the logits (N, K), means over ``eot`` draws."""
        gradients, all_logits = torch.zeros_like(pixels), None
        for _ in range(self.eot):
            leaf = pixels.detach().requires_grad_()
            with torch.enable_grad():
                logits = self(leaf)
                if not logits.requires_grad:
                    raise GradientError(f"no gradient arrives along the route {self.route!r}; choose another route")
                (gradient,) = torch.autograd.grad(loss(logits).sum(), leaf)
            gradients += gradient / self.eot
            step = logits.detach() / self.eot
            all_logits = step if all_logits is None else all_logits + step
        self.spent.gradients += len(pixels) * self.eot
        assert all_logits is not None
        return gradients, all_logits

    def _purify(self, pixels: Tensor) -> Tensor:
        noise = self.purifier.draw(pixels, self.generator)
        if noise is not None and len(noise) != len(pixels):
            raise AuditError(
                f"the target was made for {len(noise)} images, got {len(pixels)}; narrow it with select()"
            )
        if self.route == "bpda":
            return _Bpda.apply(pixels, noise, self.purifier)  # type: ignore[no-any-return, no-untyped-call]
        return self.purifier.purify(pixels, noise)


def check_route(classifier: PixelClassifier, purifier: Purifier, route: Route) -> None:
    """Raise :class:`GradientError`, saying which routes remain, if this one cannot be followed."""
    if route not in ("exact", "bpda", "oblivious", "none"):
        raise GradientError(f"route must be exact, bpda, oblivious or none, got {route!r}")
    if route != "none" and not classifier.differentiable:
        raise GradientError(
            f"route {route!r} needs gradients of the classifier, and {classifier.describe()} gives none; "
            "give the torch module instead (package.module:factory with --weights), or attack by queries (route none)"
        )
    if route == "exact" and purifier.gradient != "exact":
        raise GradientError(
            f"{type(purifier).__name__} has no exact gradient (it declares a surrogate); use the route bpda"
        )


class _Bpda(torch.autograd.Function):
    """Forward: purify. Backward: the vector-Jacobian product of the surrogate.

    Not ``s + (p - s).detach()``, whose float32 forward value differs from p.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, noise: Tensor | None, purifier: Purifier) -> Tensor:
        ctx.save_for_backward(pixels, noise)
        ctx.purifier = purifier
        return purifier.purify(pixels, noise).clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        pixels, noise = ctx.saved_tensors
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            stand_in = ctx.purifier.surrogate(leaf, noise)
            (gradient,) = torch.autograd.grad(stand_in, leaf, upstream[0])
        return gradient, None, None
