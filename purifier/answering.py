"""The one way from an image to an answer: draw, purify, score, reject, classify.

Guards, targets, the audit's judge, ONNX graphs, pictures and the exporters' reference all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .contracts.purifier import Purifier, check_purified, check_scores, dtype_of
from .data.pixels import Preprocessing, into_range
from .errors import AuditError
from .rejection.policy import Rejection
from .seeding import SampleGenerator


class Answer(NamedTuple):
    """What a guard says about N images."""

    output: Any
    """The classifier's output; the logits of rejected images replaced, if the rejection says so."""
    purified: Tensor
    """What the classifier was given, (N, C, H, W) in [0, 1]."""
    score: Tensor | None
    """How unusual each image is, (N,); None unless asked for or needed."""
    rejected: Tensor | None
    """Which images score above the threshold, bool (N,); None without scores or threshold."""


def to_pixels(images: Tensor, preprocessing: Preprocessing, purifier: Purifier) -> Tensor:
    """A classifier's images as pixels (N, C, H, W) in [0, 1], in the dtype that the purifier computes in."""
    return into_range(preprocessing.to_pixels(images)).to(dtype_of(purifier))


def draw(purifier: Purifier, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
    """The noise of one purification of pixels (N, C, H, W), (N, ...), or None.

    Raises
    ------
    AuditError
        The generator has not one stream for each image.
    """
    noise = purifier.draw(pixels, generator)
    if noise is not None and len(noise) != len(pixels):
        raise AuditError(f"noise was made for {len(noise)} images, got {len(pixels)}; narrow the target with select()")
    return noise


def purify(
    purifier: Purifier, pixels: Tensor, noise: Tensor | None = None, *, scored: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The purified pixels, same shape as ``pixels`` (N, C, H, W), and if ``scored`` the scores (N,).

    Raises
    ------
    PluginError
        The purifier gives other shapes.
    """
    if not scored:
        purified = purifier.purify(pixels, noise)
        check_purified(purifier, purified, pixels)
        return purified, None
    purified, score = purifier.purify_and_score(pixels, noise)
    check_purified(purifier, purified, pixels)
    check_scores(purifier, score, pixels)
    return purified, score


def answer(
    purifier: Purifier,
    classify: Callable[[Tensor], Any],
    pixels: Tensor,
    noise: Tensor | None = None,
    *,
    rejection: Rejection | None = None,
    scored: bool = False,
) -> Answer:
    """Purify, reject and classify.

    Parameters
    ----------
    classify
        The classifier: purified pixels -> its output.
    pixels
        (N, C, H, W) in [0, 1].
    noise
        The purifier's ``draw()``; None for its mean.
    rejection
        What to do with images that score above the threshold; nothing by default.
    scored
        Whether to score the images even where the rejection needs no scores.

    Raises
    ------
    RejectedError
        An image is rejected, with ``on_reject="raise"``; the classifier is not asked.
    PluginError
        The purifier gives other shapes.
    """
    rejection = rejection or Rejection()
    purified, score = purify(purifier, pixels, noise, scored=scored or rejection.active)
    rejected = None
    if score is not None and rejection.threshold is not None:
        rejected = rejection.of(score)
        rejection.check(score, rejected)
    output = classify(purified)
    if rejection.replaces:
        assert rejected is not None
        output = rejection.replace(output, rejected, purifier, pixels)
    return Answer(output, purified, score, rejected)
