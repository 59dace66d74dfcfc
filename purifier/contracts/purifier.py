"""The interface that purifier authors implement: Purifier, and the optional protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..data.images import ImageData
from ..data.pixels import fits
from ..errors import ConfigError, PluginError
from ..seeding import SampleGenerator
from .registry import Registry


class Purifier(nn.Module, ABC):
    """Maps pixels to pixels: float32, (N, C, H, W), in [0, 1]. Authors implement ``purify``."""

    Config: ClassVar[type]
    """Frozen, JSON-able dataclass, enough to rebuild it. A field ``image_shape`` (C, H, W) fixes the image size."""
    gradient: ClassVar[Literal["exact", "surrogate"]]
    """``exact``: autograd through purify is correct. ``surrogate``: it is not; use ``surrogate()``."""
    surrogate_purifies: ClassVar[bool] = False
    """Whether ``surrogate`` returns the same values as purify, so BPDA needs only one pass."""
    uses_labels: bool = False
    """Whether ``loss`` also takes ``labels=``, (N,) int64."""
    any_size: bool = False
    """Whether it takes images of other heights and widths than those of ``image_shape``."""
    no_latent_space: str | None = None
    """Why there is no latent space although the methods of ``LatentSpace`` exist."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.provenance: Mapping[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_declared(cls)

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        """All randomness of one purification (in training mode: of one loss), (N, ...), or None."""
        return None

    @abstractmethod
    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The purified pixels, same shape: a pure function of its arguments."""

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """What BPDA differentiates instead of purify; must be overridden with ``gradient = "surrogate"``."""
        return pixels

    def score(self, pixels: Tensor) -> Tensor:
        """How unusual each image is, (N,), higher is more unusual; by default purify's mean squared change."""
        return _change(self.purify(pixels), pixels)

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both at once; override it if they share work."""
        purified = self.purify(pixels, noise)
        shared = noise is None and type(self).score is Purifier.score
        return purified, _change(purified, pixels) if shared else self.score(pixels)

    def loss(self, pixels: Tensor, target: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """Named scalar terms, means over the batch, that training sums; ``target`` is what to reconstruct."""
        raise ConfigError(f"{type(self).__name__} has nothing to train; use it as it is")

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.purify(pixels, noise)


def _change(purified: Tensor, pixels: Tensor) -> Tensor:
    return (purified - pixels).square().flatten(1).mean(1)


def _check_declared(cls: type[Purifier]) -> None:
    name, declared = cls.__name__, getattr(cls, "gradient", None)
    if declared not in ("exact", "surrogate") or not hasattr(cls, "Config"):
        raise PluginError(f"{name} must declare Config and gradient = 'exact' or 'surrogate'", name)
    if declared == "surrogate" and cls.surrogate is Purifier.surrogate:
        raise PluginError(f"{name} declares gradient = 'surrogate', so it must define surrogate()", name)


@runtime_checkable
class Scheduled(Protocol):
    """A purifier that is trained in stages; training calls these methods if they exist."""

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        """Called before each epoch (from 1), in training mode; torch's global generator follows the run's seed.

        A run that resumes inside an epoch calls it again for that epoch; its weights and buffers are then put back.
        """

    def figures(self) -> dict[str, float]:
        """Values to log after an epoch."""


@runtime_checkable
class OnePass(Protocol):
    """A purifier whose purified pixels and loss come from one pass."""

    def purify_and_loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of ``purify`` and the terms of ``loss``; ``labels`` as for ``loss``."""


@runtime_checkable
class Posterior(Protocol):
    """A purifier that encodes an image to a normal distribution q(z|x) with independent dimensions."""

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, ...), for pixels (N, C, H, W)."""


@runtime_checkable
class Classifying(Protocol):
    """A purifier with a classifier of its own, for images that a guard rejects."""

    def classify(self, pixels: Tensor) -> Tensor:
        """Log-probabilities of the classes, (N, K), for pixels (N, C, H, W)."""


@runtime_checkable
class LatentSpace(Protocol):
    """A purifier whose latent space can be attacked; both methods are differentiable and use no noise."""

    def latent_of(self, pixels: Tensor) -> Tensor:
        """The encoder's latents (N, ...) for pixels (N, C, H, W)."""

    def decoded(self, latent: Tensor) -> Tensor:
        """The decoder's pixels (N, C, H, W) in [0, 1] for latents (N, ...)."""


@runtime_checkable
class Sized(Protocol):
    """A Config that suggests options for images and for sizes such as ``small``."""

    @classmethod
    def suggested(cls, image_shape: tuple[int, int, int], size: str | None) -> Mapping[str, Any]:
        """Options by name for images (C, H, W). Options that a user gives override them.

        ``size`` is the name of a size; None for what suits the images. Raises ``ConfigError``, naming the sizes, if
        there is no such size.
        """


def dtype_of(purifier: Purifier, default: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype of a purifier's weights; ``default`` if it has none."""
    tensors = chain(purifier.parameters(), purifier.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), default)


purifiers: Registry[Purifier] = Registry("purifier.purifiers", Purifier)


Shape: TypeAlias = tuple[int, int | None, int | None]
"""(C, H, W) of images; None for any height and width."""


def image_shape_of(purifier: Purifier) -> Shape | None:
    """The images (C, H, W) that a purifier takes, from its config; None if it takes any."""
    shape = getattr(purifier.config, "image_shape", None)
    if shape is None:
        return None
    return (shape[0], None, None) if purifier.any_size else (shape[0], shape[1], shape[2])


def usual_shape_of(purifier: Purifier) -> tuple[int, int, int] | None:
    """The images (C, H, W) that a purifier was made for, from its config; None if no size is as good as another."""
    shape = getattr(purifier.config, "image_shape", None)
    return None if shape is None else (shape[0], shape[1], shape[2])


def latent_space_of(purifier: Purifier) -> LatentSpace:
    """The purifier as one with a latent space; raises ``ConfigError`` with the reason if it has none."""
    name = type(purifier).__name__
    if not isinstance(purifier, LatentSpace):
        raise ConfigError(f"expected a purifier with a latent space (latent_of, decoded); {name} has none")
    if purifier.no_latent_space:
        raise ConfigError(
            f"expected a purifier with a latent space; {name} has none, because {purifier.no_latent_space}"
        )
    return purifier


def check_purified(purifier: Purifier, purified: Tensor, pixels: Tensor) -> None:
    """Raise ``PluginError`` unless ``purified`` has the shape of ``pixels`` (N, C, H, W)."""
    if fits(purified.shape, pixels.shape):
        return
    name = type(purifier).__name__
    raise PluginError(f"{name} must return images {tuple(pixels.shape)}, got {tuple(purified.shape)}", name)


def check_scores(purifier: Purifier, score: Tensor, pixels: Tensor) -> None:
    """Raise ``PluginError`` unless ``score`` holds one number per image of ``pixels`` (N, C, H, W)."""
    if fits(score.shape, pixels.shape[:1]):
        return
    name = type(purifier).__name__
    raise PluginError(f"{name} must return scores ({len(pixels)},), got {tuple(score.shape)}", name)
