"""What a guard does with the images it rejects: those that score above the purifier's threshold, or NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..contracts.purifier import Classifying, Purifier, image_shape_of
from ..errors import ConfigError, PluginError, RejectedError
from ..vocabulary import OnReject
from .calibration import calibration_of, rejected, threshold_of


@dataclass(frozen=True)
class Rejection:
    """How a guard handles rejected images.

    Parameters
    ----------
    on_reject
        ``ignore``: do nothing. ``flag``: report which they are. ``abstain``: their logits become NaN, or certain of
        the class ``abstain``. ``raise``: raise ``RejectedError``. ``reclassify``: their logits
        become the purifier's own log-probabilities.
    abstain
        Class for ``on_reject="abstain"``, which gets the logit 0 and all others -inf. None: all logits are NaN.
    threshold
        Images that score above it are rejected; None if the purifier is not calibrated and no threshold is needed.
    """

    on_reject: OnReject = "ignore"
    abstain: int | None = None
    threshold: float | None = None

    @property
    def active(self) -> bool:
        """Whether rejection has any effect, so images must be scored."""
        return self.on_reject != "ignore"

    @property
    def replaces(self) -> bool:
        """Whether the logits of rejected images are replaced."""
        return self.on_reject in ("abstain", "reclassify")

    @property
    def marks(self) -> bool:
        """Whether rejected images are marked as such instead of getting an answer that counts."""
        return self.on_reject in ("flag", "raise") or (self.on_reject == "abstain" and self.abstain is None)

    def of(self, score: Tensor) -> Tensor:
        """Which images are rejected, bool (N,), by their scores (N,)."""
        assert self.threshold is not None
        return rejected(score, self.threshold)

    def replace(self, logits: Any, which: Tensor, purifier: Purifier, pixels: Tensor) -> Tensor:
        """Logits (N, K) with the rows of the rejected images, bool (N,), replaced.

        Raises
        ------
        ConfigError
            The classifier does not return plain logits, or its number of classes does not fit the replacement.
        """
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim != 2:
            kind = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                f"on_reject={self.on_reject!r}: expected a classifier that returns logits, floats (N, K), and nothing "
                f"else, got {kind}; use on_reject='flag'"
            )
        if self.on_reject == "reclassify":
            row = self._reclassified(logits, purifier, pixels)
        else:
            row = torch.tensor([self.row(logits.shape[1])], dtype=logits.dtype, device=logits.device)
        return torch.where(which[:, None], row, logits)

    def row(self, classes: int) -> list[float]:
        """The logits of an image on which the guard abstains."""
        if self.abstain is None:
            return [float("nan")] * classes
        if self.abstain >= classes:
            raise ConfigError(f"abstain: expected a class from 0 to {classes - 1}, got {self.abstain}")
        return [0.0 if place == self.abstain else float("-inf") for place in range(classes)]

    def check_classes(self, own: int, classes: int) -> None:
        """Raise ``ConfigError`` unless the purifier has as many classes as the classifier."""
        if own != classes:
            raise ConfigError(
                f"on_reject='reclassify': the purifier has {own} classes, but the classifier has {classes}; use "
                "on_reject='abstain' or 'flag'"
            )

    def check(self, score: Tensor, which: Tensor) -> None:
        """Raise ``RejectedError`` if any image is rejected and ``on_reject`` is ``raise``."""
        if self.on_reject == "raise" and bool(which.any()):
            raise self.error(which, score)

    def error(self, which: Any, score: Any) -> RejectedError:
        """The error for rejected images, bool (N,), with their scores (N,)."""
        return RejectedError(
            f"{int(which.sum())} of {len(which)} images are rejected: they score above {self.threshold:.6g}, or NaN; "
            "see this error's .rejected and .score",
            which,
            score,
        )

    def _reclassified(self, logits: Tensor, purifier: Purifier, pixels: Tensor) -> Tensor:
        assert isinstance(purifier, Classifying)
        found = purifier.classify(pixels)
        if found.ndim != 2:
            raise PluginError(
                f"classify must return log-probabilities (N, K), got {tuple(found.shape)}", type(purifier).__name__
            )
        self.check_classes(found.shape[1], logits.shape[1])
        return found.to(logits.dtype)


def rejection_of(purifier: Purifier, on_reject: Any, abstain: Any) -> Rejection:
    """Make a ``Rejection``, checking the options against the purifier.

    Raises
    ------
    ConfigError
        An option has an impossible value, or the purifier is not calibrated, or has no ``classify``.
    CheckpointError
        The purifier's calibration is damaged.
    """
    if on_reject not in get_args(OnReject):
        raise ConfigError(f"on_reject must be one of {', '.join(get_args(OnReject))}, got {on_reject!r}")
    if abstain is not None and on_reject != "abstain":
        raise ConfigError(f"abstain needs on_reject='abstain', got {on_reject!r}; leave it out")
    if abstain is not None and (type(abstain) is not int or abstain < 0):
        raise ConfigError(f"abstain: expected a class, 0 or more, or None for NaN, got {abstain!r}")
    if on_reject == "ignore":
        found = calibration_of(purifier)
        return Rejection(threshold=None if found is None else found.threshold)
    if on_reject == "reclassify":
        _try_classify(purifier)
    return Rejection(on_reject, abstain, threshold_of(purifier))


@torch.no_grad()
def _try_classify(purifier: Purifier) -> None:
    """Fail now, not at the first rejected image, if the purifier cannot classify."""
    if not isinstance(purifier, Classifying):
        raise ConfigError(
            f"on_reject='reclassify': {type(purifier).__name__} has no classifier of its own (classify); use "
            "on_reject='abstain' or 'flag'"
        )
    shape, weight = image_shape_of(purifier), next(purifier.parameters(), None)
    if shape is not None and weight is not None:
        purifier.classify(weight.new_zeros(1, *shape))


def check_exportable(rejection: Rejection) -> None:
    """Raise ``ConfigError`` if an ONNX graph cannot handle rejected images this way."""
    if rejection.on_reject == "raise":
        raise ConfigError(
            "on_reject='raise' cannot be exported, because a graph cannot raise errors; use on_reject='flag', whose "
            "last output says which images are rejected"
        )
