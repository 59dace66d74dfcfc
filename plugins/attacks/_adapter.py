"""Shared by the adapters to other libraries: the model they attack, their randomness, their options."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from purifier.attacking.attack import Attack
from purifier.attacking.target import Target
from purifier.attacking.threat import Threat
from purifier.errors import ConfigError, GradientError
from purifier.seeding import SampleGenerator, mix_seed
from purifier.torch_tools.process_settings import kept_settings

from ._scale import ScaleOption

ALL = ("linf", "l2", "l1")
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Names of the norms in several libraries."""
FROM_THE_THREAT = ("eps", "max_epsilon", "norm", "targeted")


class TargetModel(nn.Module):
    """A target as a plain classifier, which can be called on any images in any order.

    Parameters
    ----------
    target
        Answers all calls, which raise its counts. It is not registered as a submodule, so a library that moves or
        trains the model does not touch the classifier and the purifier.
    seed
        Seed for a random purifier's noise: each call draws new noise for each image. Logits (N, K) and their
        gradients are means over ``target.eot`` draws.
    clean
        The target's images, (N, C, H, W). Logits are in the unit of the nearest one, because a library does not say
        which images it asks about. Images on another device are moved to theirs, and the logits back.
    """

    def __init__(self, target: Target, seed: int, clean: Tensor) -> None:
        super().__init__()
        self._held = (target, clean.flatten(1))
        self._seed, self._draws, self._classes = seed, 0, 0
        # Libraries look at the parameters to find a model's device.
        self.place = nn.Parameter(torch.zeros((), device=clean.device), requires_grad=False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        target, clean = self._held
        moved = pixels.to(clean.device, torch.float32)
        if not len(pixels):
            # A library may ask with what is left of a batch, the target must not.
            return moved.flatten(1)[:, :1].expand(0, self._classes).to(pixels.device)
        logits = torch.stack([self._once(target, clean, moved) for _ in range(target.eot)]).mean(0)
        if moved.requires_grad and not logits.requires_grad and torch.is_grad_enabled():
            raise GradientError(
                f"the library needs gradients, but none arrive along the route {target.route!r}; choose a route with "
                "gradients (exact, bpda, oblivious), or an attack that needs none"
            )
        self._classes = logits.shape[1]
        return logits.to(pixels.device)

    @torch.no_grad()
    def classes(self, pixels: Tensor) -> int:
        """The number of classes, from the logits of the first image."""
        return int(self(pixels[:1]).shape[1])

    def _once(self, target: Target, clean: Tensor, pixels: Tensor) -> Tensor:
        streams = SampleGenerator(mix_seed(self._seed, self._draws), range(len(pixels)))
        self._draws += 1
        nearest = torch.cdist(pixels.detach().flatten(1), clean).argmin(1)
        logits: Tensor = target.with_streams(streams, nearest)(pixels)
        if logits.requires_grad:

            def count(_: Tensor) -> None:
                target.spent.gradients += len(pixels)
                target.spent.passes += len(pixels)

            logits.register_hook(count)  # type: ignore[no-untyped-call]  # torch's own has no types
        return logits


@dataclass(frozen=True)
class Adapter(ScaleOption, Attack):
    """An attack of another library, run on a target within a threat; the core projects and judges as for any attack.

    The library draws from the global generators of torch, NumPy and Python, which are seeded from the images' own
    streams and restored afterwards: one seed, one result. But the library sees a batch as a whole, so a random attack
    gives an image a different result in a different batch.
    """

    library: ClassVar[str]
    distribution: ClassVar[str]
    """The distribution whose version goes into the report."""
    install: ClassVar[str]
    """The command that installs the library."""
    needs: ClassVar[Literal["gradient", "latent", "scores", "labels"]] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ALL
    """Each instance overrides ``needs`` and ``norms`` with those of its attack."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def perturb(
        self, target: Target, pixels: Tensor, labels: Tensor, threat: Threat, generator: SampleGenerator
    ) -> Tensor:
        if threat.norm not in self.norms:
            raise ConfigError(
                f"attack {self.library!r}: {self.name} supports {', '.join(self.norms)}, not {threat.norm}; "
                "choose another attack or norm"
            )
        if threat.eps == 0:
            return pixels.clone()
        numbers = generator.uniform((2,), torch.empty(0)) * 2**24
        seed = mix_seed(*numbers.long().flatten().tolist())
        model = TargetModel(self.seen(target), mix_seed(seed, "noise"), pixels)
        with kept_settings(seed), calm():
            found = self._run(model, pixels.detach().clone(), labels.clone(), threat, seed % 2**31)
        return found.detach().to(pixels).clamp(0, 1)

    @abstractmethod
    def _run(self, model: TargetModel, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        """The library's images (N, C, H, W) for pixels (N, C, H, W) and labels (N,), which are copies it may change."""

    def _import(self, module: str) -> Any:
        """Import a library's module, or raise an error that says how to install it."""
        try:
            with calm():
                return importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"attack {self.library!r} needs {module.partition('.')[0]}, which cannot be imported ({error}); "
                f"install it: {self.install}"
            ) from error

    def _error(self, why: str) -> ConfigError:
        return ConfigError(f"attack {self.library!r}: {why}")

    def _check_name(self, known: Collection[str]) -> None:
        if self.name not in known:
            folded = {name.lower(): name for name in known}
            near = difflib.get_close_matches(self.name.lower(), folded, n=4, cutoff=0.5)
            hint = "did you mean " + ", ".join(folded[name] for name in near) if near else ", ".join(sorted(known))
            raise self._error(f"there is no attack {self.name!r} that can be run here; {hint}")

    def _check_options(self, accepted: Collection[str]) -> None:
        for option in self.options:
            if option in FROM_THE_THREAT:
                raise self._error(f"{option} comes from the threat, and attacks are untargeted; leave {option} out")
            if option not in accepted:
                open_to = ", ".join(sorted(name for name in accepted if name not in FROM_THE_THREAT)) or "none"
                raise self._error(f"{self.name} has no option {option!r}; its options are: {open_to}")

    def _declare(self, *, norms: tuple[str, ...], needs: str) -> None:
        """Set the attributes ``needs`` and ``norms`` for this attack of the library."""
        if not norms:
            raise self._error(f"{self.name} bounds none of linf, l2 and l1; choose another attack")
        object.__setattr__(self, "norms", norms)
        object.__setattr__(self, "needs", needs)


def parameters_of(kind: Callable[..., object]) -> dict[str, Any]:
    """The parameters of a library's class with their defaults, including the model."""
    parameters = list(inspect.signature(kind).parameters.values())
    return {one.name: one.default for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}


def rescaled(parameters: Mapping[str, Any], step: str, eps: float) -> dict[str, float]:
    """A step size in pixel units with the same ratio to ``eps`` as the library's defaults, if there are both."""
    return {step: parameters[step] / parameters["eps"] * eps} if {step, "eps"} <= parameters.keys() else {}


@contextmanager
def calm() -> Iterator[None]:
    """Keep a library's warnings from raising, even if the user turned warnings into errors; hide its deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield
