"""Losses that attacks maximise: logits (N, K) and labels (N,) -> one number per image, (N,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from purifier.attacking.target import Target
from purifier.errors import ConfigError

FLAT = 1e-12
"""Lower limit for differences of logits in denominators."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; its gradient vanishes in float32 where the classifier is very confident."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini & Wagner 2017, f6, sign flipped); > 0 means misclassified."""
    right = labels.unsqueeze(1)
    others = logits.float().scatter(1, right, -torch.inf)
    return others.amax(1) - logits.float().gather(1, right).squeeze(1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equation 6): the margin over the first logit minus the third.

    Shifting or scaling all logits does not change it, so a very confident classifier cannot hide its gradient. With two
    classes only the sign of the difference is invariant like that; with fewer than three logits above -inf this is the
    margin.
    """
    top = _largest(logits, 3)
    spread = torch.where(top[:, 2] > -torch.inf, top[:, 0] - top[:, 2], 1)
    return margin(logits, labels) / spread.clamp_min(FLAT)


def targeted_ce(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target classes, ``targets`` (N,); ``labels`` are ignored."""
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR loss (Croce & Hein 2020, equation 7): the target's logit minus the right one, over a spread.

    The spread is the first logit minus the mean of the third and fourth. With three logits above -inf it is the first
    minus the mean of the second and third; with the third alone, the loss towards the least likely class would be
    constant. With two logits there is no spread, as in ``dlr``.
    """
    gap = logits.float().gather(1, torch.stack([targets, labels], 1))
    first, second, third, fourth = _largest(logits, 4).unbind(1)
    low = torch.where(fourth > -torch.inf, (third + fourth) / 2, (second + third) / 2)
    spread = torch.where(third > -torch.inf, first - low, 1)
    return (gap[:, 0] - gap[:, 1]) / spread.clamp_min(FLAT)


def likeliest_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The class with the largest logit other than the label's, (N,)."""
    return logits.detach().float().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)


def targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the wrong class that is likeliest here; ``loss_of`` can fix one class for a whole attack.

    Its gradient does not vanish where the classifier is very confident in the label.
    """
    return targeted_ce(logits, labels, likeliest_wrong(logits, labels))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": margin,
    "targeted": targeted,
}
"""A logit of -inf is a class that is never chosen. A NaN gives a NaN, which no attack takes as an improvement."""


@dataclass(frozen=True)
class NamedLoss:
    """A loss (N,) of the logits (N, K) of N images. ``targets`` (N,) are the classes that ``targeted`` aims at."""

    name: str
    labels: Tensor
    targets: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.targets is not None:
            return targeted_ce(logits, self.labels, self.targets)
        return LOSSES[self.name](logits, self.labels)

    def select(self, keep: Tensor) -> NamedLoss:
        """The loss for some of the images: ``keep`` is a mask (N,) or positions."""
        targets = None if self.targets is None else self.targets[keep]
        return replace(self, labels=self.labels[keep], targets=targets)


def loss_of(name: str, labels: Tensor, first_logits: Tensor | None = None) -> NamedLoss:
    """The named loss for these labels (N,).

    ``targeted`` always aims at the likeliest wrong class of ``first_logits`` (N, K); without them, at that of the
    logits it is called with.
    """
    if name == "targeted" and first_logits is not None:
        return NamedLoss(name, labels, likeliest_wrong(first_logits, labels))
    return NamedLoss(name, labels)


def loss_from(name: str, target: Target, pixels: Tensor, labels: Tensor) -> NamedLoss:
    """The named loss of an attack that starts at ``pixels`` (N, C, H, W); queries the target if it is ``targeted``."""
    return loss_of(name, labels, target.logits(pixels) if name == "targeted" else None)


def check_loss(attack: str, name: str) -> None:
    """Raise ``ConfigError`` unless ``name`` is a key of ``LOSSES``."""
    if name not in LOSSES:
        raise ConfigError(f"attack {attack!r}: loss must be one of {', '.join(LOSSES)}, got {name!r}")


def _largest(logits: Tensor, count: int) -> Tensor:
    """The largest logits in descending order, (N, count), padded with -inf if there are fewer classes."""
    top = logits.float().topk(min(count, logits.shape[1]), dim=1).values
    return functional.pad(top, (0, count - top.shape[1]), value=-torch.inf)
