"""What a guard does with the images it rejects: those that score above the purifier's threshold, or NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..contracts.purifier import Classifying, Purifier, usual_shape_of
from ..data.pixels import constant_like
from ..data.reading import sizes_of
from ..errors import ClassifierError, ConfigError, PluginError, RejectedError
from ..output import LOGITS, Output
from ..vocabulary import OnBadPixels, OnReject
from .calibration import calibration_of, rejected, threshold_of


@dataclass(frozen=True)
class Rejection:
    """How a guard handles rejected images, and bad ones, which no purifier takes.

    Parameters
    ----------
    on_reject
        ``ignore``: do nothing. ``flag``: report which they are. ``abstain``: their answers become NaN, or certain of
        the class ``abstain``. ``raise``: raise ``RejectedError``. ``reclassify``: their answers become those of the
        purifier's own classifier.
    abstain
        Class for ``on_reject="abstain"``, which gets the logit 0 and all others -inf, or the probabilities 1 and 0; a
        binary logit becomes -inf or inf. None: all are NaN.
    threshold
        Images that score above it are rejected; None if the purifier is not calibrated and no threshold is needed.
    on_bad_pixels
        ``raise``: raise ``PixelError``. ``reject``: treat a bad image as a rejected one. ``clamp``: clamp finite values
        to [0, 1], and raise for NaN and infinity.
    """

    on_reject: OnReject = "ignore"
    abstain: int | None = None
    threshold: float | None = None
    on_bad_pixels: OnBadPixels = "raise"

    @property
    def clamps(self) -> bool:
        """Whether finite values outside [0, 1] are clamped instead of making an image bad."""
        return self.on_bad_pixels == "clamp"

    @property
    def blanks(self) -> bool:
        """Whether a bad image gets no answer where no error is raised, instead of that of a rejected image."""
        return not (self.on_bad_pixels == "reject" and self.answers)

    @property
    def active(self) -> bool:
        """Whether rejection has any effect, so images must be scored."""
        return self.on_reject != "ignore"

    @property
    def replaces(self) -> bool:
        """Whether the answers for rejected images are replaced."""
        return self.on_reject in ("abstain", "reclassify")

    @property
    def answers(self) -> bool:
        """Whether rejected images get an answer that counts, in place of the classifier's."""
        return self.replaces and not self.marks

    @property
    def marks(self) -> bool:
        """Whether rejected images are marked as such instead of getting an answer that counts."""
        return self.on_reject in ("flag", "raise") or (self.on_reject == "abstain" and self.abstain is None)

    def of(self, score: Tensor) -> Tensor:
        """Which images are rejected, bool (N,), by their scores (N,)."""
        assert self.threshold is not None
        return rejected(score, self.threshold)

    def replace(self, given: Any, which: Tensor, purifier: Purifier, pixels: Tensor, output: Output = LOGITS) -> Any:
        """A classifier's output with the answers for the rejected images, bool (N,), replaced.

        Parameters
        ----------
        given
            The output, whose answer ``output`` finds; its other entries stay as they are.

        Raises
        ------
        ClassifierError
            There is no such answer, or it cannot be replaced.
        ConfigError
            Its number of classes does not fit the replacement.
        """
        try:
            answer = output.find(given)
            if self.on_reject == "reclassify":
                row = self._reclassified(answer, purifier, pixels, output)
            else:
                values = self.row(1 if answer.ndim == 1 else _columns(answer), output)
                row = constant_like(answer, values)[None]
            shown = which.reshape(-1, *[1] * (answer.ndim - 1))
            return output.replace(given, torch.where(shown, row.reshape(row.shape[0], *answer.shape[1:]), answer))
        except ClassifierError as error:
            raise ClassifierError(
                f"on_reject={self.on_reject!r}: {error}; or use on_reject='flag', which replaces nothing", ""
            ) from error

    def row(self, classes: int, output: Output = LOGITS) -> list[float]:
        """The answer (K numbers, or one if binary) for an image on which the guard abstains."""
        columns, classes = (1, 2) if output.binary else (classes, classes)
        if self.abstain is None:
            return [float("nan")] * columns
        if self.abstain >= classes:
            raise ConfigError(f"abstain: expected a class from 0 to {classes - 1}, got {self.abstain}")
        if output.binary:
            low, high = (float("-inf"), float("inf")) if output.log_scale else (0.0, 1.0)
            return [high if self.abstain == 1 else low]
        chosen, other = (0.0, float("-inf")) if output.log_scale else (1.0, 0.0)
        return [chosen if place == self.abstain else other for place in range(classes)]

    def own_answer(self, log_probabilities: Tensor, output: Output = LOGITS) -> Tensor:
        """A purifier's own log-probabilities (N, K) as an answer of the classifier's kind: (N, K), or (N, 1) if binary.

        Raises
        ------
        ConfigError
            The classifier is binary, and K is not 2.
        """
        if output.binary:
            self.check_classes(_columns(log_probabilities), 2)
            log_probabilities = log_probabilities[:, 1:] - (log_probabilities[:, :1] if output.log_scale else 0)
        return log_probabilities if output.log_scale else log_probabilities.exp()

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

    def _reclassified(self, answer: Tensor, purifier: Purifier, pixels: Tensor, output: Output) -> Tensor:
        assert isinstance(purifier, Classifying)
        found = purifier.classify(pixels)
        if found.ndim != 2:
            raise PluginError(
                f"classify must return log-probabilities (N, K), got {tuple(found.shape)}", type(purifier).__name__
            )
        if not output.binary:
            self.check_classes(_columns(found), _columns(answer))
        return self.own_answer(found, output).to(answer.dtype)


def _columns(answer: Tensor) -> int:
    known = sizes_of(answer)[1]
    return answer.shape[1] if known is None else known


def replaceable_ranks(output: Output) -> tuple[int, ...]:
    """How many dimensions an answer can have for its rows to be replaced."""
    return (1, 2) if output.binary else (2,)


def rejection_of(purifier: Purifier, on_reject: Any, abstain: Any, on_bad_pixels: Any = "raise") -> Rejection:
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
    if on_bad_pixels not in get_args(OnBadPixels):
        raise ConfigError(f"on_bad_pixels must be one of {', '.join(get_args(OnBadPixels))}, got {on_bad_pixels!r}")
    if on_bad_pixels == "reject" and on_reject not in ("flag", "abstain"):
        raise ConfigError(f"on_bad_pixels='reject' needs on_reject='flag' or 'abstain', got {on_reject!r}")
    if abstain is not None and on_reject != "abstain":
        raise ConfigError(f"abstain needs on_reject='abstain', got {on_reject!r}; leave it out")
    if abstain is not None and (type(abstain) is not int or abstain < 0):
        raise ConfigError(f"abstain: expected a class, 0 or more, or None for NaN, got {abstain!r}")
    if on_reject == "ignore":
        found = calibration_of(purifier)
        return Rejection(threshold=None if found is None else found.threshold, on_bad_pixels=on_bad_pixels)
    if on_reject == "reclassify":
        _try_classify(purifier)
    return Rejection(on_reject, abstain, threshold_of(purifier), on_bad_pixels)


@torch.no_grad()
def _try_classify(purifier: Purifier) -> None:
    """Fail now, not at the first rejected image, if the purifier cannot classify."""
    if not isinstance(purifier, Classifying):
        raise ConfigError(
            f"on_reject='reclassify': {type(purifier).__name__} has no classifier of its own (classify); use "
            "on_reject='abstain' or 'flag'"
        )
    shape, weight = usual_shape_of(purifier), next(purifier.parameters(), None)
    if shape is not None and weight is not None:
        purifier.classify(weight.new_zeros(1, *shape))


def check_exportable(rejection: Rejection) -> None:
    """Raise ``ConfigError`` if an ONNX graph cannot handle rejected images this way."""
    if rejection.on_reject == "raise":
        raise ConfigError(
            "on_reject='raise' cannot be exported, because a graph cannot raise errors; use on_reject='flag', whose "
            "last output says which images are rejected"
        )
