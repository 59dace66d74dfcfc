"""Negative controls: audits that are set up wrong or attack too little, each in one way their flags must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from deceiving import Tires
from sly import CountsPixels, Detector, SeesTheGrid, SeesTheSecond, Smoothed
from torch import Tensor, nn

from audit_helpers import Give
from broken import Behind, Broken
from purifier import Purifier
from purifier.data.images import ImageData
from purifier.guards.guard import guard

ATTACK, JOINT = "pgd:steps=20", "joint:steps=10"


@dataclass(frozen=True)
class Mistake:
    """An audit's arguments, made from a healthy classifier and its data, and the flags that the audit raises."""

    name: str
    make: Callable[[nn.Module, ImageData], dict[str, Any]]
    flags: frozenset[str]


class Learning(Broken):
    """Moves a buffer a little each time it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        self.asked += 1e-9
        return pixels


class Columns(nn.Module):
    """Some of the logits, in another order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.order]


class Scaled(nn.Module):
    """Images from 0 to 255 as the classifier behind wants them."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 255


def _relabelled(data: ImageData, change: Callable[[Tensor], Tensor]) -> ImageData:
    return ImageData("relabelled", data.batch(range(len(data)))[0], change(data.labels))


def _of_one_class(data: ImageData) -> ImageData:
    pixels, labels = data.batch(range(len(data)))
    return ImageData("one class", pixels[labels == 0], labels[labels == 0])


def _all_wrong(classifier: nn.Module, data: ImageData) -> ImageData:
    """Labels of which none is what the classifier says, in no order that would explain it."""
    pixels, _ = data.batch(range(len(data)))
    with torch.no_grad():
        said = classifier(pixels).argmax(1)
    shift = torch.randint(1, 10, (len(said),), generator=torch.Generator().manual_seed(0))
    return ImageData("wrong", pixels, (said + shift) % 10)


def _fail(pixels: Tensor, labels: Tensor) -> Tensor:
    raise ValueError("no such luck")


def _mistake(
    name: str, flags: str, make: Callable[[nn.Module, ImageData], tuple[nn.Module, Purifier, ImageData]], *attacks: Any
) -> Mistake:
    def given(model: nn.Module, data: ImageData) -> dict[str, Any]:
        classifier, filter_, images = make(model, data)
        rejecting = {"on_reject": "flag"} if isinstance(filter_, Detector) else {}
        return {"guard": guard(classifier, filter_, **rejecting), "data": images, "attacks": attacks or (ATTACK,)}

    return Mistake(name, given, frozenset(flags.split()))


def _nothing(pixels: Tensor, labels: Tensor) -> Tensor:
    return pixels


REVERSED = list(range(9, -1, -1))
MISTAKES = [
    _mistake(
        "labels shifted by one",
        "at-chance set-up",
        lambda model, data: (model, Broken(), _relabelled(data, lambda labels: (labels + 1) % 10)),
    ),
    _mistake(
        "classes in another order",
        "at-chance set-up",
        lambda model, data: (Behind(model, after=Columns(REVERSED)), Broken(), data),
    ),
    _mistake(
        "classifier for 0 to 255",
        "at-chance set-up unbounded",
        lambda model, data: (Behind(model, before=Scaled()), Broken(), data),
    ),
    _mistake(
        "always one answer, one class",
        "at-chance unbounded zero-gradient",
        lambda model, data: (Behind(model, after=Columns([0, 0])), Broken(), _of_one_class(data)),
    ),
    _mistake("one class", "at-chance", lambda model, data: (model, Broken(), _of_one_class(data))),
    _mistake(
        "all images wrong",
        "at-chance nothing-attacked",
        lambda model, data: (model, Broken(), _all_wrong(model, data)),
    ),
    _mistake("every attack fails", "nothing-attacked", lambda model, data: (model, Broken(), data), Give(_fail)),
    _mistake(
        "weak steps",
        "stronger-self-check",
        lambda model, data: (model, Broken(), data),
        "pgd:steps=3,step_size=0.01,random_start=false",
    ),
    _mistake("detector never attacked", "detector-ignored", lambda model, data: (model, Detector(), data)),
    _mistake(
        "misleading surrogate of a differentiable purifier",
        "transfer-wins",
        lambda model, data: (model, Smoothed(), data),
        ATTACK,
        "square:queries=200",
    ),
    _mistake(
        "score that counts",
        "zero-gradient detector-ignored",
        lambda model, data: (model, CountsPixels(), data),
        ATTACK,
        JOINT,
    ),
    _mistake(
        "score off the grid", "gradient-wrong transfer-wins", lambda model, data: (model, SeesTheGrid(), data), JOINT
    ),
    _mistake(
        "score that remembers", "stateful paths-disagree", lambda model, data: (model, SeesTheSecond(), data), JOINT
    ),
    _mistake("one step only", "weak-attacks", lambda model, data: (model, Broken(), data), "fgsm"),
    _mistake("noise only", "weak-attacks", lambda model, data: (model, Broken(), data), "noise"),
    _mistake("attack that does nothing", "weak-attacks", lambda model, data: (model, Broken(), data), Give(_nothing)),
    _mistake("tires of being asked", "stateful", lambda model, data: (model, Tires(60), data)),
    _mistake("buffer that changes", "stateful", lambda model, data: (model, Learning(), data)),
]
"""Mistakes that only a whole audit can show."""
