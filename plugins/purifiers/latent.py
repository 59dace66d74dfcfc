"""Purifier ``latent``: decodes the latent whose image is nearest to x, found by gradient descent through a decoder."""

from __future__ import annotations

import dataclasses
import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.contracts.checkpoint import load
from purifier.contracts.purifier import Purifier, latent_space_of, purifiers
from purifier.data.pixels import check_shape
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator

from ._descent import Descent, Settings
from ._variational import Variational

LATENT_PRESETS = {
    "defense-gan": Settings(
        start="random", restarts=10, steps=200, optimizer="momentum", lr=10.0, momentum=0.7, beta=0.0
    ),
    "fast": Settings(start="encoder", restarts=1, steps=12, optimizer="adam", lr=0.3, momentum=0.0, beta=0.0),
}
MAX_STEPS, MAX_RESTARTS, MAX_LR = 10_000, 1000, 1e4
MAX_BANK, MAX_BANK_VALUES = 100_000, 2 * 10**8
_loading = ContextVar("loading", default=False)


@dataclass(frozen=True)
class LatentConfig:
    """Which decoder to use, and how to search for the latent.

    Parameters
    ----------
    base
        PURIFIER spec of a vae or gmvae: ``file.safetensors`` or ``demo-plain``. Its weights become part of this
        purifier, whose checkpoint then names the base's plugin and options here instead of its file.
    image_shape
        (C, H, W) of the images; by default the base's, and it must match.
    preset
        ``fast``: a few steps from the encoder's mean. ``defense-gan``: 10 random starts, 200 steps (Samangouei et al.
        2018, section 4). The options below override the preset.
    start
        Where the descent starts: at the ``encoder``'s mean, at ``random`` prior draws, or at the best of a ``bank`` of
        decoded prior draws.
    restarts
        Starts per image; the best result is kept.
    steps
        Gradient steps from each start.
    optimizer
        ``momentum``, gradient descent with momentum, or ``adam``.
    lr
        Learning rate of the optimizer.
    momentum
        Momentum of ``optimizer=momentum``, in [0, 1).
    beta
        Weight of -log p(z) in the objective.
    bank
        How many decoded prior draws ``start=bank`` searches (Schott et al. 2019, section 3); by default 1000.
    truncate
        How many of the last steps the surrogate differentiates, in addition to the start if it is the encoder's.
    loop
        Export the steps as one ONNX Loop instead of a copy of each, which makes the file smaller.
    sample
        Draw new random starts for each image. False: use the same few prior draws for every image, as an exported
        graph does.
    """

    base: str
    image_shape: tuple[int, int, int] | None = None
    preset: Literal["fast", "defense-gan"] = "fast"
    start: Literal["encoder", "random", "bank"] | None = None
    restarts: int | None = None
    steps: int | None = None
    optimizer: Literal["momentum", "adam"] | None = None
    lr: float | None = None
    momentum: float | None = None
    beta: float | None = None
    bank: int | None = None
    truncate: int = 1
    loop: bool = False
    sample: bool = True

    def __post_init__(self) -> None:
        used = self.settings
        if not 1 <= used.steps <= MAX_STEPS or not 1 <= used.restarts <= MAX_RESTARTS:
            raise ConfigError(
                f"latent: steps must be from 1 to {MAX_STEPS} and restarts from 1 to {MAX_RESTARTS}, got {used}"
            )
        if not (0 < used.lr <= MAX_LR and 0 <= used.momentum < 1 and 0 <= used.beta < math.inf):
            raise ConfigError(
                f"latent: expected lr above 0 and at most {MAX_LR:g}, momentum in [0, 1) and beta >= 0, got {used}"
            )
        if self.bank is not None and used.start != "bank":
            raise ConfigError(f"latent: bank needs start=bank, got start={used.start}; leave bank out")
        if used.start == "bank" and not used.restarts <= self.banked <= MAX_BANK:
            raise ConfigError(f"latent: bank must be from restarts ({used.restarts}) to {MAX_BANK}, got {self.banked}")
        if self.momentum is not None and used.optimizer == "adam":
            raise ConfigError("latent: momentum needs optimizer=momentum, got optimizer=adam; leave momentum out")
        if not self.sample and not used.random_starts:
            raise ConfigError("latent: sample=false needs random starts, but there are none; leave sample out")
        fewest = 0 if used.start == "encoder" else 1  # without the encoder, only the steps carry a gradient
        if not fewest <= self.truncate <= used.steps:
            raise ConfigError(f"latent: truncate must be from {fewest} to steps ({used.steps}), got {self.truncate}")

    @property
    def banked(self) -> int:
        """How many draws the bank holds."""
        return 1000 if self.bank is None else self.bank

    @property
    def settings(self) -> Settings:
        """The preset, overridden by the options that were given."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return dataclasses.replace(
            LATENT_PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None}
        )


class Latent(Purifier):
    """Returns G(z*) with z* = argmin_z |G(z) - x|^2 - beta log p(z), where G and p are those of a vae or gmvae.

    Random starts come from ``draw``; without noise they are the same few prior draws for every image. The exact
    gradient is that of the unrolled descent; the surrogate treats all but the last ``truncate`` steps as a shift that
    does not depend on the image (truncated backpropagation, Shaban et al. 2019).
    """

    Config = LatentConfig
    gradient: ClassVar[Literal["exact", "surrogate"]] = "exact"
    surrogate_purifies = True
    config: LatentConfig
    starts: Tensor
    bank_images: Tensor

    def __init__(self, config: LatentConfig) -> None:
        base = _load_base(config.base)
        if not isinstance(base, Variational):
            raise ConfigError(
                f"latent: base must have a decoder, as vae and gmvae do; {config.base!r} is a {type(base).__name__}"
            )
        latent_space_of(base)
        shape = base.config.image_shape
        if any(side % base.config.granularity for side in shape[1:]):
            raise ConfigError(
                f"latent: expected a base for images with sides that are multiples of {base.config.granularity}, got "
                f"{shape}; train one for such images"
            )
        if config.image_shape not in (None, shape):
            raise ConfigError(f"latent: expected the base's image_shape {shape}, got {config.image_shape}")
        if config.settings.start == "bank" and config.banked * math.prod(shape) > MAX_BANK_VALUES:
            raise ConfigError(
                f"latent: a bank of {config.banked} images {shape} is too large, the limit is {MAX_BANK_VALUES:.0e} "
                "values; lower bank"
            )
        super().__init__(dataclasses.replace(config, base=_spec_of(base), image_shape=shape))
        self.provenance = {key: base.provenance[key] for key in ("file", "sha256") if key in base.provenance}
        self.base, self.settings = base.requires_grad_(False), config.settings
        self.descent = Descent(base, self.settings)
        banked = self.settings.start == "bank"
        starts = self._prior_draws(config.banked if banked else self.settings.random_starts)
        self.register_buffer("starts", starts)
        decoded = [self.base.decoded(part) for part in torch.split(starts, 500)] if banked else []
        self.register_buffer("bank_images", torch.cat(decoded) if banked else None)

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor | None:
        """Prior draws (N, random starts, *latent_shape); None without random starts or ``sample``."""
        count = self.settings.random_starts
        if count == 0 or not self.config.sample:
            return None
        shape = self.base.latent_shape
        normal, uniform = generator.normal((count, *shape), pixels), generator.uniform((count,), pixels)
        with torch.no_grad():
            return self.base.sample_prior(normal.flatten(0, 1), uniform.flatten()).reshape(-1, count, *shape)

    def latent_of(self, pixels: Tensor) -> Tensor:
        """The base's latent (N, *latent_shape), where a descent from the encoder starts."""
        return self.base.latent_of(pixels)

    def decoded(self, latent: Tensor) -> Tensor:
        """G(z), (N, C, H, W) in [0, 1], for z (N, *latent_shape)."""
        return self.base.decoded(latent)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """G(z*), (N, C, H, W)."""
        return self._descend(pixels, noise)[0]

    def score(self, pixels: Tensor) -> Tensor:
        """The energy |G(z*) - x|^2 - beta log p(z*), (N,), without noise."""
        return self._descend(pixels, None)[1]

    def purify_and_score(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both from one descent; with noise, from two."""
        image, energy = self._descend(pixels, noise)
        return image, energy if noise is None else self.score(pixels)

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """G(z*) with the gradient of only the start and the last ``truncate`` steps."""
        first = self.settings.steps - self.config.truncate
        start = self._start(pixels, noise)
        with torch.no_grad():
            latent, *moments = self.descent.run(pixels, self.descent.begin(start), range(first))
        state = (latent.detach() + (start - start.detach()), moments[0], moments[1])
        latent = self.descent.run(pixels, state, range(first, self.settings.steps))[0]
        return self.base.decoded(latent)

    def _descend(self, pixels: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image and energy of the best restart."""
        if self.settings.restarts == 1 or (torch.is_grad_enabled() and pixels.requires_grad):
            return self._energy(pixels, self._start(pixels, noise))
        images, energies = self._all_restarts(pixels, self._starts(pixels, noise))
        best = _lowest(energies)
        return _pick(images, best), _pick(energies, best)

    def _start(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """The start of the best restart, (N, *latent_shape). The choice has no gradient, so only this one needs it."""
        starts = self._starts(pixels, noise)
        if self.settings.restarts == 1:
            return starts[:, 0]
        with torch.no_grad():
            _, energies = self._all_restarts(pixels, starts)
        return _pick(starts, _lowest(energies))

    def _starts(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """(N, restarts, *latent_shape)."""
        check_shape(pixels, name="pixels", shape=self.config.image_shape)
        if self.settings.start == "bank":
            return self.starts[self._nearest(pixels)]
        if noise is None:
            noise = self.starts.expand(pixels.shape[0], *self.starts.shape)  # len() would fix an exported batch
        if self.settings.start == "random":
            return noise
        return torch.cat([self.base.encode(pixels)[0].unsqueeze(1), noise], 1)

    def _nearest(self, pixels: Tensor) -> Tensor:
        """The positions of the nearest images in the bank, (N, restarts)."""
        bank = self.bank_images.flatten(1)
        distances = bank.square().sum(1) - 2 * pixels.flatten(1) @ bank.mT
        return distances.topk(self.settings.restarts, dim=1, largest=False).indices

    def _all_restarts(self, pixels: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, restarts, C, H, W) and energies (N, restarts) at the end of each descent."""
        count = self.settings.restarts
        repeated = pixels.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(0, 1)
        images, energies = self._energy(repeated, starts.flatten(0, 1))
        return images.reshape(-1, count, *pixels.shape[1:]), energies.reshape(-1, count)

    def _energy(self, pixels: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The image and energy at the end of one descent per image."""
        state = self.descent.begin(start)
        if self.config.loop and torch.compiler.is_exporting():
            latent = self.descent.loop(pixels, state)[0]
        else:
            latent = self.descent.run(pixels, state, range(self.settings.steps))[0]
        return self.descent.energy(pixels, latent)

    @torch.no_grad()
    def _prior_draws(self, count: int) -> Tensor:
        """Draws (count, *latent_shape) from p(z), the same each time."""
        like = next(self.base.parameters())
        generator = SampleGenerator(0, range(count))
        return self.base.sample_prior(generator.normal(self.base.latent_shape, like), generator.uniform((), like))


def _load_base(spec: str) -> Purifier:
    """Load a base that is not itself a ``latent``: a file that names itself as its base would load forever."""
    if _loading.get():
        raise ConfigError("latent: base must be a vae or gmvae, not another latent")
    token = _loading.set(True)
    try:
        return load(spec)
    finally:
        _loading.reset(token)


def _lowest(energies: Tensor) -> Tensor:
    """The position of the lowest energy, (N,), for energies (N, R); NaN is never the lowest."""
    return torch.where(energies.isnan(), torch.inf, energies).argmin(1)


def _pick(values: Tensor, best: Tensor) -> Tensor:
    """``values[n, best[n]]``, (N, ...), for values (N, R, ...)."""
    places = best.reshape(-1, *[1] * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, places).squeeze(1)


def _spec_of(base: Variational) -> str:
    """The PURIFIER spec that builds the same purifier, without its weights."""
    fields = dataclasses.asdict(base.config).items()
    options = (f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in fields)
    return f"{purifiers.name_of(type(base))}:{','.join(options)}"
