"""Builds the purifier that is trained: from options, from suggestions for the images, or from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..contracts import checkpoint
from ..contracts.purifier import Purifier, Sized, purifiers
from ..data.images import ImageData
from ..errors import ConfigError, TrainingError
from ..seeding import mix_seed
from ..specs import build
from .recipe import Recipe

MAX_WEIGHTS = 50_000_000
"""The default limit on the number of weights: beyond it training hardly ends on a CPU, and a mistake is more likely."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a purifier is built from.

    Parameters
    ----------
    plugin
        The plugin's name.
    config
        Options of its Config, which override suggestions.
    size
        A size that the plugin suggests options for; None for what suits the images.
    init
        The checkpoint to begin with, or None.
    max_weights
        The limit on the number of weights.
    """

    plugin: str
    config: Mapping[str, object]
    size: str | None = None
    init: str | Path | None = None
    max_weights: int = MAX_WEIGHTS

    @property
    def what(self) -> str:
        """How messages call it."""
        return f"purifier {self.plugin!r}"


def built(start: Start, data: ImageData, seed: int, recipe: Recipe) -> tuple[Purifier, str | None]:
    """The purifier to train on ``data``, on the CPU, and the sha256 of the checkpoint that its weights are from.

    Raises
    ------
    ConfigError
        An option or size is unknown or does not fit the images, the checkpoint or the recipe; there are more weights
        than allowed.
    TrainingError
        There is nothing to train.
    """
    cls = purifiers.get(start.plugin)
    first = None if start.init is None else _loaded(start, start.init)
    config = _config(cls, start, data) if first is None else _config_of(cls, start, first, data)
    skeleton = checkpoint.without_memory(cls, config, start.what)
    if skeleton is not None:
        _check_weights(start, skeleton, data)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix_seed(seed, "weights"))
        purifier = checkpoint.make(cls, config, start.what)
    _check_weights(start, purifier, data)
    if not any(weight.requires_grad for weight in purifier.parameters()):
        raise TrainingError(f"{start.what} has nothing to train; use it as it is")
    if recipe.needs_exact and purifier.gradient != "exact":
        raise ConfigError(
            f"{start.what} declares a surrogate gradient, but this recipe needs an exact one; use the recipe denoise"
        )
    if first is None:
        return purifier, None
    try:
        purifier.load_state_dict(first.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"init: the weights of {start.init} do not fit images {data.shape} ({error}); resize the images to "
            f"{_sides(first.config.image_shape)}"
        ) from error
    return purifier, str(first.provenance["sha256"])


def _suggested(cls: type[Purifier], start: Start, shape: tuple[int, int, int]) -> Mapping[str, Any]:
    if issubclass(cls.Config, Sized):
        return cls.Config.suggested(shape, start.size)
    if start.size is not None:
        raise ConfigError(f"{start.what} comes in one size only; leave size out, and give its options instead")
    return {}


def _config(cls: type[Purifier], start: Start, data: ImageData) -> Any:
    """The options that were given, over those that suit the images."""
    sized = any(field.name == "image_shape" for field in dataclasses.fields(cls.Config))
    options = {**_suggested(cls, start, data.shape), **start.config}
    config: Any = build(cls.Config, {"image_shape": data.shape, **options} if sized else options, what=start.what)
    if sized and tuple(config.image_shape) != data.shape:
        raise ConfigError(
            f"{start.what}: image_shape is {tuple(config.image_shape)}, but the images of {data.name} "
            f"are {data.shape}; leave image_shape out"
        )
    return config


def _loaded(start: Start, init: str | Path) -> Purifier:
    first = checkpoint.load(init)
    if "sha256" not in first.provenance:
        raise ConfigError(f"init: expected a checkpoint, a .safetensors file, got {str(init)!r}")
    plugin = first.provenance["plugin"]
    if plugin != start.plugin:
        raise ConfigError(
            f"init: {init} holds a {plugin!r}, not a {start.plugin!r}; train {plugin!r}, or leave init out"
        )
    return first


def _config_of(cls: type[Purifier], start: Start, first: Purifier, data: ImageData) -> Any:
    """The config of a checkpoint, for the images; raise ``ConfigError`` if the options given do not agree with it."""
    config, shape = first.config, getattr(first.config, "image_shape", None)
    if shape is not None and tuple(shape) != data.shape:
        if shape[0] != data.shape[0]:
            raise ConfigError(
                f"init: {start.init} takes images {tuple(shape)}, but those of {data.name} are {data.shape}, with "
                "another number of channels; start from a checkpoint for such images, or leave init out"
            )
        if not first.any_size:
            raise ConfigError(
                f"init: {start.init} takes images {tuple(shape)} only, but those of {data.name} are {data.shape}; "
                f"resize them to {_sides(shape)}, or start from a checkpoint with a latent map (spatial=true)"
            )
        config = build(cls.Config, {**dataclasses.asdict(config), "image_shape": data.shape}, what=start.what)
    wanted = {**(_suggested(cls, start, data.shape) if start.size is not None else {}), **start.config}
    asked: Any = build(cls.Config, {**dataclasses.asdict(config), **wanted}, what=start.what)
    for name in wanted:
        mine, theirs = getattr(asked, name), getattr(config, name)
        if mine != theirs:
            by = f" (size {start.size})" if name not in start.config else ""
            raise ConfigError(
                f"init: {start.init} has {name}={theirs}, got {name}={mine}{by}; leave out one or the other"
            )
    return config


def _check_weights(start: Start, purifier: Purifier, data: ImageData) -> None:
    count = sum(weight.numel() for weight in purifier.parameters())
    if count <= start.max_weights:
        return
    sizes = ", or choose a size (--size tiny)" if issubclass(type(purifier).Config, Sized) else ""
    raise ConfigError(
        f"{start.what} has {count:,} weights with these options, for images {data.shape}; expected at "
        f"most {start.max_weights:,}: lower its sizes{sizes}, or raise --max-weights (max_weights)"
    )


def _sides(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]}x{shape[2]}"
