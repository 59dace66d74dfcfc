"""The settings that all batches of an audit share, and a batch of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..classifiers.pixel_classifier import PixelClassifier
from ..contracts.purifier import Purifier
from ..data.images import ImageData
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from ..torch_tools.module_state import ModuleState
from .report import Model
from .subject import Subject


class Unpurified(Purifier):
    """No purifier: what stands before a classifier that is audited alone."""

    Config = object
    gradient = "exact"

    def __init__(self) -> None:
        super().__init__(None)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels


class AsExact(Purifier):
    """A purifier whose ``purify`` is differentiated although it declares a surrogate."""

    Config = object
    gradient = "exact"

    def __init__(self, inner: Purifier) -> None:
        super().__init__(inner.config)
        self.inner = inner

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        return self.inner.draw(pixels, generator)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.inner.purify(pixels, noise)

    def score(self, pixels: Tensor) -> Tensor:
        return self.inner.score(pixels)


@dataclass(frozen=True)
class AuditSetup:
    """The models under audit, the parts that attacks differentiate, their device, and the audit's settings."""

    classifier: PixelClassifier
    purifier: Purifier
    rejection: Rejection
    subjects: Mapping[Model, Subject]
    """What is judged: the undefended classifier, and the guard unless the classifier is audited alone."""
    device: torch.device
    seed: int
    eot: int
    judgements: int
    batch_size: int = 250
    state: ModuleState = field(default_factory=ModuleState)
    """What classifier and purifier were before the audit: no attack may change them."""

    @property
    def model(self) -> Model:
        """The model that this audit is about."""
        return "guarded" if "guarded" in self.subjects else "undefended"

    @cached_property
    def alone(self) -> AuditSetup:
        """The same audit of the classifier alone."""
        if self.model == "undefended":
            return self
        subjects: Mapping[Model, Any] = {"undefended": self.subjects["undefended"]}
        return replace(self, purifier=Unpurified(), rejection=Rejection(), subjects=subjects, eot=1, judgements=1)

    @cached_property
    def accepting(self) -> AuditSetup:
        """The same audit of a guard that does not mark images as rejected."""
        guarded = self.subjects.get("guarded")
        if guarded is None or not guarded.marks:
            return self
        return replace(self, rejection=Rejection(), subjects={**self.subjects, "guarded": guarded.accepting()})

    def batch(self, data: ImageData, indices: Sequence[int]) -> Batch:
        """The images at these positions of the data, on the audit's device."""
        pixels, labels = (part.to(self.device) for part in data.batch(indices))
        return Batch(pixels, labels, indices)

    def answers(self, pixels: Tensor, indices: Sequence[int]) -> Tensor:
        """The undefended classifier's logits (n, K) for pixels (n, C, H, W) at these positions of the data."""
        return self.subjects["undefended"].ask(pixels, self.seed, indices).logits


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W), labels (N,), and the positions of the images in their data set."""

    pixels: Tensor
    labels: Tensor
    indices: Sequence[int]

    def select(self, at: Tensor) -> Batch:
        """The images at positions ``at``, (n,)."""
        if len(at) == len(self.indices):
            return self
        on_device = at.to(self.pixels.device)
        return Batch(self.pixels[on_device], self.labels[on_device], [self.indices[i] for i in at.tolist()])

    def split(self, size: int) -> list[Batch]:
        """Split into batches of at most ``size`` images."""
        return [self.select(at) for at in torch.split(torch.arange(len(self.indices)), size)]
