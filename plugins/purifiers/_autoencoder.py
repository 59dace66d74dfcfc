"""Convolutional encoder and decoder for images whose sides are multiples of ``stem * 2**depth``."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_CHANNELS = 256
EXPANSION = 4
"""How much wider the map between residual blocks is than the one inside them."""

Norm: TypeAlias = Literal["none", "batch"]
Pullback: TypeAlias = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """Images (N, C, H, W) -> the mean and log-variance of a latent.

    Parameters
    ----------
    colours
        C.
    map_size
        (h, w) of the last map: H and W divided by ``stem * 2**depth``.
    channels
        Width of the first layer; each halving doubles it, up to 256.
    latent
        Size of the latent vector, or channels of the latent map if ``spatial``.
    spatial
        Latent (N, latent, h, w) instead of (N, latent).
    blocks
        Residual blocks after the last halving, on a map four times as wide; 0 for none.
    stem
        Side of the patches that the first layer turns into one position each; 1 for 3x3 convolutions over all pixels.
    norm
        ``batch``: the blocks are ``Preactivated`` instead, ``blocks`` of them on the last map and one on each map after
        another halving, and batch normalisation ends each of these maps.
    context
        The last layer of a ``spatial`` encoder is ``InContext``.
    """

    def __init__(
        self,
        colours: int,
        map_size: tuple[int, int],
        channels: int,
        depth: int,
        latent: int,
        spatial: bool,
        blocks: int = 0,
        stem: int = 1,
        norm: Norm = "none",
        context: bool = False,
    ) -> None:
        super().__init__()
        widths = layer_widths(channels, depth)
        patches = stem > 1
        first = nn.Conv2d(
            colours, widths[0], stem if patches else 3, stride=stem if patches else 1, padding=0 if patches else 1
        )
        layers: list[nn.Module] = [first, nn.SiLU()]
        normalised = norm == "batch"
        for level, (inner, outer) in enumerate(pairwise(widths), start=1):
            layers.append(nn.Conv2d(inner, outer, 4, stride=2, padding=1, bias=not normalised))
            if normalised:
                layers += [Preactivated(outer) for _ in range(blocks if level == depth else min(1, blocks))]
                layers.append(nn.BatchNorm2d(outer))
            layers.append(nn.SiLU())
        width = widths[-1]
        if blocks and not normalised:
            narrow, width = width, EXPANSION * width
            layers += [nn.Conv2d(narrow, width, 1), *(Bottleneck(width) for _ in range(blocks)), nn.SiLU()]
        if spatial:
            layers.append((InContext if context else nn.Conv2d)(width, 2 * latent, 1))
        else:
            features = width * math.prod(map_size)
            layers += [nn.Flatten(), nn.Linear(features, 2 * latent)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.layers(pixels * 2 - 1).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 8)


class InContext(nn.Conv2d):
    """A convolution that adds a linear function of the mean of all positions to each position.

    So what each position says depends on the whole map (Cao et al. 2019, "GCNet", with the mean in place of attention).
    """

    def __init__(self, inner: int, outer: int, side: int) -> None:
        super().__init__(inner, outer, side)
        self.context = nn.Linear(inner, outer, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        everywhere: Tensor = self.context(features.mean((2, 3)))
        return super().forward(features) + everywhere[:, :, None, None]


class Bottleneck(nn.Module):
    """x + f(x), where f has three convolutions, the 3x3 one a quarter as wide (He et al. 2016, "Identity mappings in
    deep residual networks", figure 4e, without normalisation).

    f starts as 0, so a deep encoder starts as a shallow one (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // EXPANSION
        last = nn.Conv2d(narrow, width, 1)
        for weight in last.parameters():
            nn.init.zeros_(weight)
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, narrow, 1),
            nn.SiLU(),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.layers(features)
        return features + change


class Preactivated(nn.Module):
    """x + f(x), where f has two 3x3 convolutions, each after batch normalisation (He et al. 2016, "Identity mappings in
    deep residual networks", figure 4e).

    f starts as 0, as that of ``Bottleneck``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(nn.BatchNorm2d(width), nn.SiLU(), first, nn.BatchNorm2d(width), nn.SiLU(), last)

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.layers(features)
        return features + change


class Decoder(nn.Module):
    """A latent -> logits of the pixels (N, C, H, W); the mirror image of ``Encoder`` without blocks.

    With a stem, maps are enlarged by convolutions and pixel shuffle (Shi et al. 2016), which take less time than
    transposed convolutions. ``quiet`` starts it as 0.
    """

    def __init__(
        self,
        colours: int,
        map_size: tuple[int, int],
        channels: int,
        depth: int,
        latent: int,
        spatial: bool,
        stem: int = 1,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        widths = layer_widths(channels, depth)[::-1]
        low = (widths[0], *map_size)
        if spatial:
            layers: list[nn.Module] = [nn.Conv2d(latent, widths[0], 1), nn.SiLU()]
        else:
            size = int(torch.Size(low).numel())
            layers = [nn.Linear(latent, size), nn.SiLU(), nn.Unflatten(1, low)]
        for inner, outer in pairwise(widths):
            if stem > 1:
                layers += [nn.Conv2d(inner, 4 * outer, 3, padding=1), nn.PixelShuffle(2), nn.SiLU()]
            else:
                layers += [nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1), nn.SiLU()]
        last = nn.Conv2d(widths[-1], colours * stem**2, 3, padding=1)
        if quiet:
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        layers += [last, nn.PixelShuffle(stem)] if stem > 1 else [last]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.layers(latent)
        return logits

    def with_pullback(self, latent: Tensor) -> tuple[Tensor, Pullback]:
        """The logits, and a function from a gradient with respect to them to one with respect to ``latent``.

        It is written out layer by layer, so it can be exported and differentiated again like any other computation.
        """
        pullbacks = []
        for layer in self.layers:
            latent, pullback = _with_pullback(layer, latent)
            pullbacks.append(pullback)

        def pull(gradient: Tensor) -> Tensor:
            for pullback in reversed(pullbacks):
                gradient = pullback(gradient)
            return gradient

        return latent, pull


def _with_pullback(layer: nn.Module, given: Tensor) -> tuple[Tensor, Pullback]:
    """A layer's output and its vector-Jacobian product."""
    match layer:
        case nn.SiLU():
            gate = torch.sigmoid(given)
            made = given * gate
            slope = gate + made * (1 - gate)
            return made, lambda gradient: gradient * slope
        case nn.Linear():
            return layer(given), lambda gradient: gradient @ layer.weight
        case nn.Unflatten():
            return layer(given), lambda gradient: gradient.flatten(1)
        case nn.PixelShuffle():
            return layer(given), lambda gradient: F.pixel_unshuffle(gradient, layer.upscale_factor)
        case nn.ConvTranspose2d():
            return layer(given), lambda gradient: F.conv2d(
                gradient, layer.weight, stride=layer.stride, padding=layer.padding
            )
        case nn.Conv2d(stride=(1, 1), padding=(int() as above, int() as left), kernel_size=(high, wide)):
            # Faster than the transposed convolution, which is the same.
            turned, padding = layer.weight.flip(2, 3).transpose(0, 1), (high - 1 - above, wide - 1 - left)
            return layer(given), lambda gradient: F.conv2d(gradient, turned, padding=padding)
    raise TypeError(f"no vector-Jacobian product is implemented for {layer}")


def padded(pixels: Tensor, multiple: int) -> Tensor:
    """Pixels (N, C, H, W), their last row and column repeated until H and W are multiples of ``multiple``."""
    height, width = pixels.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if type(down) is int and type(right) is int and not (down or right):  # torch has symbols for sizes that it traces
        return pixels
    return F.pad(pixels, (0, right, 0, down), mode="replicate")


def layer_widths(channels: int, depth: int) -> list[int]:
    """Channels before the first halving and after each."""
    return [min(channels << level, max(channels, MAX_CHANNELS)) for level in range(depth + 1)]
