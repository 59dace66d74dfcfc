"""The Square attack: random search over squares, by logits alone (Andriushchenko et al. 2020)."""

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
from ._steps import Best

SIZE_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10000 queries the squares' share of the image is halved (the authors' code; section 5)."""


@dataclass(frozen=True)
class Square(Attack):
    """Random search: a square of the image is changed to the budget's edge, and kept if the loss grows.

    Algorithms 1 to 3 of Andriushchenko et al. 2020: in ``linf`` squares of one sign a channel, from vertical stripes;
    in ``l2`` squares of opposite bumps that take the budget of another square, from a grid of bumps. An image leaves
    as soon as the model that will judge it misclassifies it. In ``linf`` a square that changes nothing, or that was
    rejected before, counts as a query but is not asked again.

    Under a random target nothing leaves, and a rejected square may be asked again. One whose answer beats the mean for
    what stands is asked once more and kept if the mean of both does; what stands is asked again from time to time. The
    last image of each restart is a candidate, ranked on fresh draws. On the route ``oblivious`` the loss is climbed to
    the last query.

    Parameters
    ----------
    queries
        Most queries of each restart, at least 1; one more asks for the clean image.
    p
        Share of the image that the first squares cover, in (0, 1].
    restarts
        How many random starts an image gets.
    loss
        What grows: ``margin`` or ``ce``.
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
            raise ConfigError(f"attack 'square': p is a share of the image and must be in (0, 1], got {self.p}")
        if self.loss not in ("margin", "ce"):
            raise ConfigError(f"attack 'square': loss must be one of margin, ce, got {self.loss!r}")

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        best = Best(target, pixels, labels, self.loss)
        for _ in range(self.restarts):
            at = best.todo()
            if not len(at):
                break
            squares = self._squares(pixels[at], threat, generator.select(at), recalls=not best.random)
            Search(target, best, at, squares, self.queries).run()
        return best.pixels

    def _squares(self, clean: Tensor, threat: Threat, generator: SampleGenerator, *, recalls: bool) -> Squares:
        steps = self.queries - 1
        size = Boxes.size if threat.norm == "linf" else Bumps.size
        sides = [size(self._share(step, steps), clean.shape[2], clean.shape[3]) for step in range(steps)]
        sizes = torch.tensor(sides, dtype=torch.long)
        if threat.norm == "linf":
            return Boxes(clean, threat.eps, sizes, generator, recalls=recalls)
        return Bumps(clean, threat.eps, sizes, generator)

    def _share(self, step: int, steps: int) -> float:
        """The share of the image that a square covers at one of ``steps``, as if they were 10000."""
        return float(self.p / 2 ** sum(10000 * step > bound * steps for bound in SIZE_HALVINGS))
