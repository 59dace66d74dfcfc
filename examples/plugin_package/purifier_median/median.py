"""Purifier ``median``: each pixel becomes the median of its neighbourhood."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from purifier import Purifier


@dataclass(frozen=True)
class MedianConfig:
    """Size of the filter.

    Parameters
    ----------
    size
        Side of the window in pixels, an odd number.
    """

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"size must be odd and at least 1, got {self.size}")


class Median(Purifier):
    """Replaces each pixel by the median of its window; the border is repeated."""

    Config = MedianConfig
    gradient = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Filtered pixels, (N, C, H, W) in [0, 1]."""
        windows = _windows(pixels, self.config.size)
        return windows.sort(dim=-1).values[..., self.config.size**2 // 2]

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean of each window, which depends on every pixel in it."""
        return _windows(pixels, self.config.size).mean(-1)


def _windows(pixels: Tensor, size: int) -> Tensor:
    """The window around each pixel, (N, C, H, W, size * size)."""
    padded = functional.pad(pixels, (size // 2,) * 4, mode="replicate")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
