"""Losses an attack climbs: logits (N, K) and labels (N,) -> one number for each image, (N,)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifier.errors import ConfigError
from purifier.target import Loss


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; its gradient vanishes in float32 where the classifier is very sure."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the right one (Carlini & Wagner 2017, f6, sign turned); > 0 is misclassified."""
    right = labels.unsqueeze(1)
    others = logits.float().scatter(1, right, -torch.inf)
    return others.amax(1) - logits.float().gather(1, right).squeeze(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin}


def loss_of(name: str, labels: Tensor) -> Loss:
    """The named loss of logits (N, K) for these labels (N,)."""
    return lambda logits: LOSSES[name](logits, labels)


def check_loss(attack: str, name: str) -> None:
    """Raise :class:`ConfigError` unless ``name`` is a key of :data:`LOSSES`."""
    if name not in LOSSES:
        raise ConfigError(f"attack {attack!r}: loss must be one of {', '.join(LOSSES)}, got {name!r}")
