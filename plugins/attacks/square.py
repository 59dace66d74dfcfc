"""The Square attack: random search over squares, using only logits (Andriushchenko et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._queries_search import Search, Squares
from ._queries_squares import Boxes, Bumps
from ._scale import ScaleOption
from ._steps import Best

SIZE_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10000 queries the area of the squares is halved (the authors' code; section 5)."""


@dataclass(frozen=True)
class Square(ScaleOption, Attack):
    """Random search: changes a square of the image to the edge of the budget, and keeps it if the loss grows.

    Algorithms 1 to 3 of Andriushchenko et al. 2020: in ``linf`` squares with one sign per channel, starting from
    vertical stripes; in ``l2`` squares of opposite bumps that take over the budget of another square, starting from a
    grid of bumps. An image is done as soon as the model that will judge it misclassifies it. In ``linf`` a square that
    changes nothing, or that failed before, counts as a query but is not sent to the target.

    With a random target no image is done early, and a failed square may be tried again. A square whose answer beats the
    mean for the current image is queried once more and kept if the mean of both answers does, too; the current image is
    queried again from time to time. The last image of each restart is a candidate, ranked on new draws. On the route
    ``oblivious`` the search continues to the last query.

    Parameters
    ----------
    queries
        Maximum number of queries per restart, at least 1; one more is for the clean image.
    p
        Fraction of the image that the first squares cover, in (0, 1].
    restarts
        Random starts per image.
    loss
        Loss to maximise: ``margin`` or ``ce``.
    """

    needs: ClassVar[Literal["scores"]] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise ConfigError(
                f"attack 'square': queries and restarts must be at least 1, got {self.queries} and {self.restarts}"
            )
        if not 0 < self.p <= 1:
            raise ConfigError(f"attack 'square': p is a fraction of the image and must be in (0, 1], got {self.p}")
        if self.loss not in ("margin", "ce"):
            raise ConfigError(f"attack 'square': loss must be one of margin, ce, got {self.loss!r}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        target = self.seen(target)
        best = Best(target, pixels, labels, self.loss)
        for _ in range(self.restarts):
            at = best.todo()
            if not len(at):
                break
            squares = self._squares(pixels[at], threat, generator.select(at), remember=not best.random)
            Search(target, best, at, squares, self.queries).run()
        return best.pixels

    def _squares(self, clean: Tensor, threat: Threat, generator: SampleGenerator, *, remember: bool) -> Squares:
        steps = self.queries - 1
        size = Boxes.size if threat.norm == "linf" else Bumps.size
        sides = [size(self._fraction(step, steps), clean.shape[2], clean.shape[3]) for step in range(steps)]
        sizes = torch.tensor(sides, dtype=torch.long)
        if threat.norm == "linf":
            return Boxes(clean, threat.eps, sizes, generator, remember=remember)
        return Bumps(clean, threat.eps, sizes, generator)

    def _fraction(self, step: int, steps: int) -> float:
        """The fraction of the image that a square covers at ``step`` of ``steps``, scaled to the 10000 of the paper."""
        return float(self.p / 2 ** sum(10000 * step > bound * steps for bound in SIZE_HALVINGS))
