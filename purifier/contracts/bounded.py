"""Protocols of purifiers with proven bounds: certificates, and training for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Bounded(Protocol):
    """A purifier with finitely many outputs, and bounds on which of them images within a threat may become."""

    bounded_norms: ClassVar[tuple[str, ...]]
    """The norms of the threats that it has bounds for."""

    def outputs(self) -> Tensor:
        """All images that ``purify`` may return, (K, C, H, W)."""

    def reachable(self, pixels: Tensor, norm: str, eps: Tensor, factors: float = 0.0) -> Tensor:
        """Which outputs, (N, K) bool, ``purify`` may return for some image in [0, 1] within ``eps`` (N,) of each.

        It must hold for ``purify`` as it runs, in float32, with sums in any order, and with factors rounded by a share
        of up to ``factors`` before they are multiplied (0 but for arithmetic such as TF32). A smaller ``eps`` must not
        reach more.
        """


class TrainingBounds(NamedTuple):
    """What one step of training with bounds takes."""

    scores: Tensor
    """Of the components, or classes, (N, K)."""
    margins: Tensor
    """Lower bounds, (N, K), of the score of an image's label minus each score within the threat."""
    intervals: Sequence[tuple[Tensor, Tensor]]
    """Centre and radius of the image, and of the values before each ReLU."""


@runtime_checkable
class ScoresBounded(Protocol):
    """A purifier that scores classes on the way, with bounds; for the recipe ``robust`` with ``bounds``."""

    def training_bounds(
        self, pixels: Tensor, labels: Tensor, eps: float, points: Tensor | None = None
    ) -> TrainingBounds:
        """Scores of ``points`` (by default of ``pixels``), and bounds within a linf distance ``eps`` of ``pixels``."""


@runtime_checkable
class BoundTrained(Protocol):
    """A purifier that the recipe ``certified`` trains: component k, of which there is one a class, becomes image k."""

    images: Tensor
    """The image of each component, (K, C, H, W); training sets them."""

    @property
    def trained_for(self) -> tuple[str, float]:
        """Norm and eps of the threat that it is trained for."""

    def scores(self, pixels: Tensor) -> Tensor:
        """The components' scores, (N, K)."""

    def training_bounds(
        self, pixels: Tensor, labels: Tensor, eps: float, points: Tensor | None = None
    ) -> TrainingBounds:
        """Scores of ``points`` (by default of ``pixels``), and bounds within ``eps`` of ``pixels``; differentiable,
        without care for rounding."""
