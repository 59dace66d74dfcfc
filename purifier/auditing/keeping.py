"""Keeps, while an audit runs, what its report has besides figures: each image's results, examples, all images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..answering import purifier_input, purify
from ..attacking.threat import Threat
from ..foreign_code import Attempt
from .arrays import Array
from .counting import PendingRow
from .details import Details
from .examples import Examples
from .judging import Judged
from .outcome import Outcome
from .results import Results
from .setup import AuditSetup

EACH = 4
"""How many images that fell, and how many that held, are kept for each threat."""
POOL = 16
"""How many images of a batch that have held so far are kept for each threat, because later attacks may fool them."""


@dataclass(frozen=True)
class Example:
    """One image under the attack of ``row``."""

    row: PendingRow
    index: int
    label: int
    fell: bool
    clean: Tensor
    adversarial: Tensor
    answers: tuple[int, int]
    confidences: tuple[float, float]
    rejected: float
    margin: float

    @property
    def name(self) -> str:
        """Which image it is, under which attack."""
        return f"{self.index} {self.row}"


Purify = Callable[[Sequence[Example]], Tensor]
"""Gives what the purifier makes of the adversarial images of M examples, (M, C, H, W); NaN if there is none."""


@dataclass
class Keeper:
    """Is shown every image that an attack on the audited model found."""

    everything: bool = False
    """Whether to keep all adversarial images."""
    _fell: dict[Threat, dict[int, Example]] = field(default_factory=dict)
    _held: dict[Threat, dict[int, Example]] = field(default_factory=dict)
    _fallen: dict[Threat, set[int]] = field(default_factory=dict)
    """All images of the batch that fell, kept or not."""
    _holding: dict[Threat, dict[int, Example]] = field(default_factory=dict)
    """Images of the batch that have held so far: which they are depends on the batch alone, so that a shard keeps every
    example that all shards together would keep."""
    _all: list[tuple[PendingRow, Sequence[int], Tensor]] = field(default_factory=list)

    @property
    def pool(self) -> list[Example]:
        """All examples, of images that fell and of others; call ``begin`` before, so that the last batch counts."""
        return [one for pools in (self._fell, self._held) for found in pools.values() for one in found.values()]

    def begin(self) -> None:
        """A batch begins, or all are over: what held of the one before has held."""
        for threat, holding in self._holding.items():
            held = self._held.setdefault(threat, {})
            held.update(list(holding.items())[: max(0, EACH - len(held))])
        self._fallen, self._holding = {}, {}

    def found(self, row: PendingRow, outcome: Outcome) -> Sequence[int]:
        """What the attack of ``row`` found; two rows may share it. Returns the images kept, of those attacked."""
        if not self.everything:
            return []
        if len(outcome.indices):
            self._all.append((row, outcome.indices, outcome.found.cpu()))
        return range(len(outcome.indices))

    def judged(self, row: PendingRow, outcome: Outcome, judged: Judged, clean: Judged) -> list[int]:
        """The judge's results for what was found, and those for the same n images when clean.

        Returns those of the n that may become examples.
        """
        assert row.threat is not None
        fell, holding = self._fell.setdefault(row.threat, {}), self._holding.setdefault(row.threat, {})
        fallen = self._fallen.setdefault(row.threat, set())
        places = {image: place for place, image in enumerate(outcome.held)}
        taken = []
        for at, index in enumerate(outcome.indices):
            if clean.shares[at] <= 0.5 or index in fallen:
                continue
            wrong = bool(judged.shares[at] <= 0.5)
            if wrong:
                fallen.add(index)
                holding.pop(index, None)
            margin = float(judged.margins[at].nan_to_num(torch.inf))
            pool, most = (fell, EACH) if wrong else (holding, POOL)
            closer = index in pool and margin < pool[index].margin  # of one that held, the attack that came closest
            if closer or (index not in pool and len(pool) < most):
                taken.append(at)
                pool[index] = Example(
                    row,
                    index,
                    int(outcome.labels[at]),
                    wrong,
                    outcome.clean[places[at]].cpu().clone(),
                    outcome.found[places[at]].cpu().clone(),
                    (int(clean.answers[at]), int(judged.answers[at])),
                    (float(clean.confidences[at]), float(judged.confidences[at])),
                    np.nan if judged.rejected is None else float(judged.rejected[at]),
                    margin,
                )
        return taken

    def details(
        self, rows: Sequence[PendingRow], labels: Tensor, first: int, purify: Purify, owner: Mapping[str, str]
    ) -> Details:
        """What is kept of a finished audit, whose first image is at position ``first`` of the data.

        ``rows`` are those of its report.
        """
        self.begin()
        results = results_of(rows, labels, first)
        examples = self._examples(rows, purify)
        places = {id(row): place for place, row in enumerate(rows)}
        parts: dict[str, list[Array]] = {}
        for row, indices, pixels in self._all:
            name = f"row{places[id(row)]}"
            parts.setdefault(name, []).append(pixels.numpy())
            parts.setdefault(f"{name}_indices", []).append(np.array(indices))
        adversarial = {name: np.concatenate(arrays) for name, arrays in parts.items()} if self.everything else None
        shape = (len(rows), len(labels))
        return Details(owner, shape, results=results, examples=examples, adversarial=adversarial)

    def _examples(self, rows: Sequence[PendingRow], purify: Purify) -> Examples | None:
        chosen = self.pool
        if not chosen:
            return None
        places = {id(row): place for place, row in enumerate(rows)}
        return Examples(
            rows=np.array([places[id(one.row)] for one in chosen]),
            indices=np.array([one.index for one in chosen]),
            labels=np.array([one.label for one in chosen]),
            fell=np.array([one.fell for one in chosen]),
            clean=torch.stack([one.clean for one in chosen]).float().numpy(),
            adversarial=torch.stack([one.adversarial for one in chosen]).float().numpy(),
            purified=purify(chosen).float().numpy(),
            answers=np.array([one.answers for one in chosen]),
            confidences=np.array([one.confidences for one in chosen], dtype=np.float32),
            rejected=np.array([one.rejected for one in chosen]),
        )


@torch.no_grad()
def purified_by(setup: AuditSetup, examples: Sequence[Example]) -> Tensor:
    """What the purifier makes of the adversarial images of M examples, (M, C, H, W); NaN if it fails."""
    pixels = torch.stack([one.adversarial for one in examples])
    nothing = torch.full_like(pixels, torch.nan)
    if setup.model == "undefended":
        return nothing
    parts = []
    with Attempt() as attempt:
        for batch in torch.split(pixels, 1):  # one at a time: rounding depends on the batch
            found, _ = purify(setup.purifier, purifier_input(batch.to(setup.device), setup.purifier))
            parts.append(found.float().cpu())
    return nothing if attempt.error is not None else torch.cat(parts)


def results_of(rows: Sequence[PendingRow], labels: Tensor, first: int) -> Results:
    """The results of each image in each row; ``labels`` (N,) are those of the images from position ``first``."""
    clean = {row.model: row for row in rows if row.job is None}
    count = len(labels)

    def stacked(name: str, dtype: type, missing: float) -> Array:
        lines = [None if row.error else row.kept(name) for row in rows]
        filled = [np.full(count, missing) if line is None else line.numpy() for line in lines]
        return np.stack(filled).astype(dtype)

    counted = [
        np.full(count, np.nan) if row.error else torch.minimum(clean[row.model].shares, row.shares).numpy()
        for row in rows
    ]
    return Results(
        rows=np.array([str(row) for row in rows]),
        labels=labels.cpu().numpy(),
        counted=np.stack(counted),
        own=stacked("shares", np.float64, np.nan),
        plain=stacked("plain", np.float64, np.nan),
        rejected=stacked("rejected", np.float64, np.nan),
        scores=stacked("scores", np.float32, np.nan),
        attacked=np.stack([row.given(range(first, first + count)).numpy() for row in rows]),
        answers=stacked("answers", np.int64, -1),
        margins=stacked("margins", np.float32, np.nan),
        confidences=stacked("confidences", np.float32, np.nan),
    )
