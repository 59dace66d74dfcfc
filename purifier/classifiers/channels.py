"""Why a classifier fails on images that are grey where it wants colour, or in colour where it wants grey."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, no_grad

from .pixel_classifier import PixelClassifier

GREY, COLOUR = 1, 3


def channels_advice(classifier: PixelClassifier, pixels: Tensor) -> str:
    """What to do if a classifier fails on ``pixels`` (N, C, H, W) but not on grey or coloured ones; or nothing."""
    got = pixels.shape[1]
    wanted = GREY if got == COLOUR else COLOUR
    with suppress(Exception), no_grad():  # whatever it fails with, the number of channels does not explain it
        classifier(pixels[:1, :1].repeat(1, wanted, 1, 1))
        return f"it takes {_channels(wanted)}, and these have {got}; give others, or a classifier that takes these"
    return ""


def _channels(count: int) -> str:
    return "images with 1 channel" if count == GREY else f"images with {count} channels"
