"""The options that ``vae`` and ``gmvae`` share: shape and size of a variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from purifier.errors import ConfigError

from ._autoencoder import EXPANSION, Norm, layer_widths
from ._bounded_encoder import HIDDEN, KERNEL, bounded_widths

MAX_DEPTH, MAX_SIDE, MAX_BLOCKS, MAX_WEIGHTS = 16, 65_536, 1000, 10**9
"""Larger values are probably mistakes, so they are errors before any memory is allocated."""
OF_FREE_ENCODERS = ("spatial", "context", "blocks", "norm", "stem")
"""Options of the other encoder."""
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"channels": 16, "latent": 8, "depth": 1, "spatial": True},
    "small": {"channels": 16, "latent": 16, "depth": 2, "blocks": 3, "spatial": True},
    "base": {"channels": 32, "latent": 16, "depth": 2, "blocks": 4, "spatial": True},
}
"""``tests/benchmarks/purifier_cost.py`` measures what each costs."""
STEMS = ((128, 4), (64, 2))
"""The smallest side of an image from which on a size has that stem."""


@dataclass(frozen=True)
class VariationalConfig:
    """Shape and size of a variational autoencoder.

    Parameters
    ----------
    image_shape
        (C, H, W) of the images that it is trained on. With ``spatial`` it takes images of any height and width. Inside,
        images are padded to multiples of ``stem * 2**depth``, and what it returns is cropped.
    channels
        Width of the first layer, doubled at each halving up to 256.
    depth
        How many times the image is halved after the stem: 2 for 28x28 and 32x32, 1 with ``stem=4`` for 224x224.
    latent
        Size of the latent vector; with ``spatial``, channels of the latent map.
    spatial
        Use a latent map, with a position for each ``stem * 2**depth`` pixels of a side, instead of one vector; for
        large images.
    context
        Add to each position of the latent map what all positions say together, a linear function of the encoder's mean
        over its last map. Decoders see a few positions at a time, so without it no part of the image learns what the
        rest shows. For the recipe ``robust``.
    blocks
        Residual blocks where the encoder's map is smallest: much capacity for little time; worth it with the recipe
        ``robust``.
    norm
        ``batch``: blocks of two 3x3 convolutions with batch normalisation instead, ``blocks`` of them where the
        encoder's map is smallest and one on each larger map after a halving. It learns faster with the recipe
        ``robust``; once trained, what an image becomes does not depend on its batch.
    encoder
        ``bounded``: convolutions of stride 2 whose bounds the recipe ``robust`` can train with (``robust:bounds=0.1``).
        For images of one size, and a latent vector; without blocks and stem.
    classes
        For ``encoder=bounded``: how many classes the labels have; it scores them while it is trained.
    stem
        Side of the patches that the first layer turns into one position each, and that the last one writes; 1 for 3x3
        convolutions over all pixels. 4 makes images of 224x224 cheap.
    skip
        Let the decoder write a correction of the image instead of a new one. A new purifier then changes nothing, so
        training starts at the classifier's own accuracy. It has no latent space to attack or descend in, because the
        decoder needs the image; its likelihood is Gaussian.
    sample
        Purify with z ~ q(z|x) instead of the mean of q(z|x); needs noise.
    score
        How to measure how unusual an image is. ``elbo``: the negative ELBO in nats, that is -log p(x|z) at the
        latent that is decoded to purify (instead of its mean over q(z|x)), plus the KL divergence (for a mixture, a
        closed-form upper bound of it). ``reconstruction``: the mean squared change made by purifying. ``prior``:
        -log p(z) in nats at the mean of q(z|x). Nats of images of another size than ``image_shape`` are scaled to it.
    """

    image_shape: tuple[int, int, int]
    channels: int = 32
    depth: int = 2
    latent: int = 64
    spatial: bool = False
    context: bool = False
    blocks: int = 0
    norm: Norm = "none"
    encoder: Literal["free", "bounded"] = "free"
    classes: int = 10
    stem: int = 1
    skip: bool = False
    sample: bool = False
    score: Literal["elbo", "reconstruction", "prior"] = "elbo"

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1 or min(self.channels, self.depth, self.latent, self.stem) < 1:
            raise ConfigError(f"image_shape, channels, depth, latent and stem must be positive, got {self}")
        if not 0 <= self.blocks <= MAX_BLOCKS:
            raise ConfigError(f"blocks must be from 0 to {MAX_BLOCKS}, got {self.blocks}")
        if self.context and not self.spatial:
            raise ConfigError("context is for a latent map; set spatial=true, or leave context out")
        self._check_encoder()
        height, width = self.image_shape[1:]
        if self.depth > MAX_DEPTH or max(height, width) > MAX_SIDE:
            raise ConfigError(
                f"expected a depth of at most {MAX_DEPTH} and images of at most {MAX_SIDE} pixels a side, got "
                f"depth {self.depth} and {height}x{width}"
            )
        if min(height, width) < self.granularity:
            largest = int(math.log2(max(1, min(height, width) // self.stem)))
            advice = f"lower depth to {largest}" if largest else "resize the images"
            if self.stem > 1:
                advice += ", or lower stem"
            raise ConfigError(
                f"images of {height}x{width} are too small: a stem of {self.stem} and a depth of {self.depth} need at "
                f"least {self.granularity} pixels a side; {advice}"
            )
        if self._weights() > MAX_WEIGHTS:
            raise ConfigError(
                f"these options give {self._weights():.3g} weights, expected at most {MAX_WEIGHTS:.0e}; "
                "lower channels or latent, raise depth, or set spatial=true"
            )

    @property
    def granularity(self) -> int:
        """How many pixels of a side are one position of the latent map."""
        return self.stem << self.depth

    @property
    def map_size(self) -> tuple[int, int]:
        """(h, w) of the encoder's last map for images of ``image_shape``."""
        height, width = (-(-side // self.granularity) for side in self.image_shape[1:])
        return height, width

    @classmethod
    def suggested(cls, image_shape: tuple[int, int, int], size: str | None) -> Mapping[str, Any]:
        """The options for images of this shape and a ``size`` of ``SIZES``; None for what suits the images."""
        if size is not None and size not in SIZES:
            raise ConfigError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
        side = min(image_shape[1:])
        stem = next((stem for least, stem in STEMS if side >= least), 1)
        if size is None and stem == 1:
            return {}
        return {**SIZES[size or "small"], "stem": stem}

    def _check_encoder(self) -> None:
        if self.encoder == "free":
            if self.classes != type(self).classes:
                raise ConfigError("classes is for encoder=bounded; give that too, or leave classes out")
            return
        given = [name for name in OF_FREE_ENCODERS if getattr(self, name) != getattr(type(self), name)]
        if given:
            raise ConfigError(f"encoder=bounded goes without {', '.join(given)}; leave out one or the other")
        if self.classes < 2:
            raise ConfigError(f"classes must be at least 2, got {self.classes}")

    def _weights(self) -> int:
        """The number of weights of encoder and decoder, without biases."""
        widths = layer_widths(self.channels, self.depth)
        pixels = 1 if self.spatial else math.prod(self.map_size)
        first = self.image_shape[0] * widths[0] * max(9, self.stem**2)
        enlarging = 36 if self.stem > 1 else 16
        if self.encoder == "bounded":
            wider = bounded_widths(self.image_shape[0], self.channels, self.depth)
            convolutions = KERNEL**2 * sum(inner * outer for inner, outer in pairwise(wider))
            decoder = first + 16 * sum(inner * outer for inner, outer in pairwise(widths))
            features = pixels * (wider[-1] * HIDDEN + widths[-1] * self.latent)
            return convolutions + decoder + features + (2 * self.latent + self.classes) * HIDDEN
        convolutions = 2 * first + (16 + enlarging) * sum(inner * outer for inner, outer in pairwise(widths))
        wide, blocks = widths[-1], 0
        if self.blocks and self.norm == "batch":
            blocks = 18 * (sum(width**2 for width in widths[1:-1]) + self.blocks * widths[-1] ** 2)
        elif self.blocks:
            wide, blocks = EXPANSION * wide, (self.blocks * (2 * EXPANSION + 9) + EXPANSION) * wide**2
        return convolutions + blocks + (2 * wide * (1 + self.context) + widths[-1]) * self.latent * pixels
