"""What a batch came to: clean, and under one attack; all that counting needs of it, and what a journal keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attacking.target import Spent
from .judging import Judged
from .report import Model

COUNTS = ("queries", "gradients", "passes", "scores")
"""The fields of ``Spent`` that count."""
PROVEN = "proven/"
Record = tuple[dict[str, Any], dict[str, Tensor]]
"""What a journal keeps of an outcome: values for JSON, and tensors."""


@dataclass(frozen=True)
class CleanOutcome:
    """The clean images of a batch: labels (n,), and each model's results."""

    labels: Tensor
    judged: Mapping[Model, Judged]
    seconds: Mapping[Model, float]
    proven: Mapping[str, Tensor] = field(default_factory=dict)
    """For each threat with proofs, by its ``key_of``, the images whose answer provably stays, bool (n,)."""

    def record(self) -> Record:
        """As a journal keeps it."""
        tensors = {"labels": self.labels.cpu()}
        for model, one in self.judged.items():
            tensors |= _tensors(one, model)
        tensors |= {f"{PROVEN}{threat}": held for threat, held in self.proven.items()}
        return {"seconds": dict(self.seconds)}, tensors

    @classmethod
    def read(cls, record: Record) -> CleanOutcome:
        """From what ``record`` gave."""
        values, tensors = record
        judged: dict[Model, Judged] = {model: _judged(tensors, model) for model in values["seconds"]}
        proven = {name.removeprefix(PROVEN): held for name, held in tensors.items() if name.startswith(PROVEN)}
        return cls(tensors["labels"], judged, values["seconds"], proven)


@dataclass(frozen=True)
class Outcome:
    """One attack on n images of a batch: what it cost, what it found, and how each row of it was judged."""

    at: Tensor
    """Positions of the attacked images in the batch, (n,)."""
    indices: Sequence[int]
    """Their positions in the data."""
    labels: Tensor
    """(n,)."""
    spent: Spent
    crafting: float
    """Seconds."""
    judged: Sequence[Judged]
    """One for each row; none after an error."""
    judging: Sequence[float]
    """Seconds."""
    error: str | None
    held: Sequence[int]
    """The images, numbered from 0 to n - 1, whose pixels follow: all, or those that a journal kept."""
    clean: Tensor
    """(len(held), C, H, W)."""
    found: Tensor
    """The same images under attack."""

    @classmethod
    def failure(cls, error: str) -> Outcome:
        """That of an attack which failed, on this batch or an earlier one."""
        nothing = torch.zeros(0)
        return cls(nothing.long(), (), nothing.long(), Spent(), 0.0, (), (), error, (), nothing, nothing)

    def holding(self, images: Sequence[int]) -> Outcome:
        """The same with the pixels of some of the images that it holds."""
        places = {image: place for place, image in enumerate(self.held)}
        chosen = torch.tensor([places[image] for image in images], dtype=torch.long, device=self.found.device)
        return dataclasses.replace(self, held=list(images), clean=self.clean[chosen], found=self.found[chosen])

    def record(self) -> Record:
        """As a journal keeps it."""
        tensors = {name: getattr(self, name).cpu() for name in ("at", "labels", "clean", "found")}
        for place, one in enumerate(self.judged):
            tensors |= _tensors(one, str(place))
        values = {
            "indices": list(self.indices),
            "spent": [getattr(self.spent, name) for name in COUNTS],
            "crafting": self.crafting,
            "judging": list(self.judging),
            "error": self.error,
            "held": list(self.held),
            "rows": len(self.judged),
        }
        return values, tensors

    @classmethod
    def read(cls, record: Record) -> Outcome:
        """From what ``record`` gave."""
        values, tensors = record
        return cls(
            at=tensors["at"],
            indices=values["indices"],
            labels=tensors["labels"],
            spent=Spent(**dict(zip(COUNTS, values["spent"], strict=True))),
            crafting=values["crafting"],
            judged=[_judged(tensors, str(place)) for place in range(values["rows"])],
            judging=values["judging"],
            error=values["error"],
            held=values["held"],
            clean=tensors["clean"],
            found=tensors["found"],
        )


def _tensors(judged: Judged, prefix: str) -> dict[str, Tensor]:
    values = {field.name: getattr(judged, field.name) for field in dataclasses.fields(judged)}
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def _judged(tensors: Mapping[str, Tensor], prefix: str) -> Judged:
    return Judged(**{field.name: tensors.get(f"{prefix}/{field.name}") for field in dataclasses.fields(Judged)})  # type: ignore[arg-type]  # a missing one is one that may be None
