"""Purifier ``latent``: the image of the latent nearest to x, found by gradient descent through a decoder."""

from __future__ import annotations

import dataclasses
import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from purifier.contracts.checkpoint import load
from purifier.contracts.purifier import Purifier, purifiers
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
MOST_STEPS, MOST_RESTARTS, FASTEST = 10_000, 1000, 1e4
MOST_BANK, MOST_BANK_VALUES = 100_000, 2 * 10**8
_loading = ContextVar("loading", default=False)


@dataclass(frozen=True)
class LatentConfig:
    """Whose decoder, and how the latent is looked for.

    Parameters
    ----------
    base
        PURIFIER spec of a vae or gmvae: ``file.safetensors`` or ``demo-plain``. Its weights become part of this
        purifier, which keeps its plugin and options here in the file's place.
    image_shape
        (C, H, W) of the images; the base's.
    preset
        ``fast``: from the encoder's mean, few steps. ``defense-gan``: 10 random starts, 200 steps (Samangouei et al.
        2018, section 4). The options below replace single settings of the preset.
    start
        Where the descent starts: at the ``encoder``'s mean, at ``random`` prior draws, or at the best of a ``bank`` of
        decoded prior draws.
    restarts
        Starts for each image; the best result is kept.
    steps
        Gradient steps from each start.
    optimizer, lr, momentum
        How the latent moves: ``momentum`` or ``adam``, its learning rate and its momentum.
    beta
        Weight of -log p(z) in what is minimised.
    bank
        How many decoded prior draws ``start=bank`` looks through (Schott et al. 2019, section 3); 1000 unless given.
    truncate
        How many of the last steps the surrogate differentiates, beside an encoder's start.
    loop
        In an exported graph, write the steps as one ONNX Loop in the place of a copy for each: a smaller file.
    sample
        Draw random starts anew for each image. False: the same few prior draws for every image, as in an exported
        graph.
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
        if not 1 <= used.steps <= MOST_STEPS or not 1 <= used.restarts <= MOST_RESTARTS:
            raise ConfigError(
                f"latent: steps must be from 1 to {MOST_STEPS} and restarts to {MOST_RESTARTS}, got {used}"
            )
        if not (0 < used.lr <= FASTEST and 0 <= used.momentum < 1 and 0 <= used.beta < math.inf):
            raise ConfigError(
                f"latent: expected lr above 0 and at most {FASTEST:g}, momentum in [0, 1) and beta >= 0, got {used}"
            )
        if self.bank is not None and used.start != "bank":
            raise ConfigError(f"latent: bank is for start=bank, these descents start at {used.start!r}; leave bank out")
        if used.start == "bank" and not used.restarts <= self.banked <= MOST_BANK:
            raise ConfigError(f"latent: bank must be from restarts ({used.restarts}) to {MOST_BANK}, got {self.banked}")
        if self.momentum is not None and used.optimizer == "adam":
            raise ConfigError("latent: momentum is for optimizer=momentum, this is adam; leave momentum out")
        if not self.sample and not used.random_starts:
            raise ConfigError("latent: sample=false is for random starts, these descents have none; leave sample out")
        fewest = 0 if used.start == "encoder" else 1  # without the encoder, only steps carry a gradient
        if not fewest <= self.truncate <= used.steps:
            raise ConfigError(f"latent: truncate must be from {fewest} to steps ({used.steps}), got {self.truncate}")

    @property
    def banked(self) -> int:
        """How many draws the bank holds."""
        return 1000 if self.bank is None else self.bank

    @property
    def settings(self) -> Settings:
        """The preset with what was given in its place."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return dataclasses.replace(
            LATENT_PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None}
        )


class Latent(Purifier):
    """Gives G(z*) with z* = argmin_z |G(z) - x|^2 - beta log p(z), G and p of a vae or gmvae.

    Random starts come from :meth:`draw`; without noise they are the same few prior draws for every image. The exact
    gradient is that of the unrolled descent; the surrogate takes all but the last ``truncate`` steps for a shift that
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
        shape = base.config.image_shape
        if config.image_shape not in (None, shape):
            raise ConfigError(f"latent: its base is for images {shape}, got image_shape {config.image_shape}")
        if config.settings.start == "bank" and config.banked * math.prod(shape) > MOST_BANK_VALUES:
            raise ConfigError(
                f"latent: a bank of {config.banked} images {shape} is too large, it may hold "
                f"{MOST_BANK_VALUES:.0e} values; lower bank"
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
        """Prior draws (N, random starts, *latent_shape); None where no start is random, or not ``sample``."""
        count = self.settings.random_starts
        if count == 0 or not self.config.sample:
            return None
        shape = self.base.latent_shape
        normal, uniform = generator.normal((count, *shape), pixels), generator.uniform((count,), pixels)
        with torch.no_grad():
            return self.base.sample_prior(normal.flatten(0, 1), uniform.flatten()).reshape(-1, count, *shape)

    def latent_of(self, pixels: Tensor) -> Tensor:
        """The base's latent (N, *latent_shape), where a descent from the encoder begins."""
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
        """Both of one descent; with noise, of two."""
        image, energy = self._descend(pixels, noise)
        return image, energy if noise is None else self.score(pixels)

    def surrogate(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """G(z*) with the gradient of the start and the last ``truncate`` steps alone."""
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
        """The start of the best restart, (N, *latent_shape). Which one it is has no gradient, so only it needs one."""
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
        """Which of the bank's images are nearest, (N, restarts)."""
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
        """The image and energy at the end of one descent an image."""
        state = self.descent.begin(start)
        if self.config.loop and torch.compiler.is_exporting():
            latent = self.descent.loop(pixels, state)[0]
        else:
            latent = self.descent.run(pixels, state, range(self.settings.steps))[0]
        return self.descent.energy(pixels, latent)

    @torch.no_grad()
    def _prior_draws(self, count: int) -> Tensor:
        """The same (count, *latent_shape) draws from p(z) each time."""
        like = next(self.base.parameters())
        generator = SampleGenerator(0, range(count))
        return self.base.sample_prior(generator.normal(self.base.latent_shape, like), generator.uniform((), like))


def _load_base(spec: str) -> Purifier:
    """A base, which is no latent itself: a file that names itself as its base would be loaded for ever."""
    if _loading.get():
        raise ConfigError("latent: base must be a vae or gmvae, not another latent")
    token = _loading.set(True)
    try:
        return load(spec)
    finally:
        _loading.reset(token)


def _lowest(energies: Tensor) -> Tensor:
    """The position of the lowest energy, (N,), for energies (N, R); NaN is none."""
    return torch.where(energies.isnan(), torch.inf, energies).argmin(1)


def _pick(values: Tensor, best: Tensor) -> Tensor:
    """``values[n, best[n]]``, (N, ...), for values (N, R, ...)."""
    places = best.reshape(-1, *[1] * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, places).squeeze(1)


def _spec_of(base: Variational) -> str:
    """The PURIFIER spec that builds such a purifier, without its weights."""
    fields = dataclasses.asdict(base.config).items()
    options = (f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in fields)
    return f"{purifiers.name_of(type(base))}:{','.join(options)}"
