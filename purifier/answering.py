"""The one way from an image to an answer: draw, purify, score, reject, classify.

Guards, targets, the audit's judge, ONNX graphs, pictures and the exporters' reference all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contracts.purifier import Purifier, check_purified, check_scores, dtype_of
from .data.pixels import into_range
from .errors import AuditError, PluginError
from .output import LOGITS, Output
from .rejection.policy import Rejection
from .seeding import SampleGenerator


class Answer(NamedTuple):
    """A guard's answer for N images."""

    output: Any
    """The classifier's output, with the answers for rejected images replaced if the rejection asks for it."""
    purified: Tensor
    """The pixels that the classifier saw, (N, C, H, W) in [0, 1]."""
    score: Tensor | None
    """How unusual each image is, (N,); None unless requested or needed."""
    rejected: Tensor | None
    """Which images score above the threshold, bool (N,); None without scores or a threshold."""


def purifier_input(pixels: Tensor, purifier: Purifier) -> Tensor:
    """Pixels (N, C, H, W) as the purifier takes them: clamped to [0, 1], in the dtype of its weights.

    A purifier without weights takes float32, or float64 if the pixels are.
    """
    default = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    return into_range(pixels).to(dtype_of(purifier, default))


def draw(purifier: Purifier, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
    """The noise (N, ...) for one purification of pixels (N, C, H, W), or None.

    Raises
    ------
    AuditError
        The generator does not have one stream per image.
    PluginError
        The purifier does not draw noise for each image.
    """
    noise = purifier.draw(pixels, generator)
    if noise is None or len(noise) == len(pixels):
        return noise
    if len(generator) != len(pixels):
        raise AuditError(
            f"expected noise for {len(pixels)} images, got a generator for {len(generator)}; narrow the target with "
            "select()"
        )
    name = type(purifier).__name__
    raise PluginError(f"{name}.draw must return noise for {len(pixels)} images, got noise for {len(noise)}", name)


def purify(
    purifier: Purifier, pixels: Tensor, noise: Tensor | None = None, *, scored: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The purified pixels, same shape as ``pixels`` (N, C, H, W), and the scores (N,) if ``scored``.

    Raises
    ------
    PluginError
        The purifier returns other shapes.
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
    output: Output = LOGITS,
) -> Answer:
    """Purify, reject and classify.

    Parameters
    ----------
    classify
        The classifier: purified pixels -> its output.
    pixels
        (N, C, H, W) in [0, 1].
    noise
        The result of the purifier's ``draw()``; None purifies without noise.
    rejection
        What to do with images that score above the threshold; by default nothing.
    scored
        Whether to score the images even if the rejection needs no scores.
    output
        What ``classify`` returns, for rejections that replace it.

    Raises
    ------
    RejectedError
        An image is rejected and ``on_reject`` is ``"raise"``; the classifier does not run.
    PluginError
        The purifier returns other shapes.
    """
    rejection = rejection or Rejection()
    purified, score = purify(purifier, pixels, noise, scored=scored or rejection.active)
    rejected = None
    if score is not None and rejection.threshold is not None:
        rejected = rejection.of(score)
        rejection.check(score, rejected)
    given = classify(purified)
    if rejection.replaces:
        assert rejected is not None
        given = rejection.replace(given, rejected, purifier, pixels, output)
    return Answer(given, purified, score, rejected)
