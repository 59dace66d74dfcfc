"""Attacks of foolbox (Rauber et al. 2020) against a target: ``foolbox:LinfPGD,steps=40``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from purifier.attacking.threat import Threat

from ._adapter import ALL, Adapter, Shown, parameters_of

FOOLBOX_QUERIES = ("Noise", "Contrast", "Blur", "Inversion", "Boundary", "HopSkipJump")
"""Words in the names of attacks that follow no gradient; all of them look at the predicted label only."""
FOOLBOX_EXCLUDED = ("BinarizationRefinementAttack", "DatasetAttack", "GenAttack", "PointwiseAttack", "SpatialAttack")
"""They need starting points, a data set or a target class, or know no distance."""


@dataclass(frozen=True)
class FoolboxAttack(Adapter):
    """An attack of foolbox 3, by its name in ``foolbox.attacks``, on the device of the images.

    Attacks of a fixed budget get the threat's eps. Attacks that look for the smallest change look for it, and the
    core projects what is beyond eps. Those that can work in several norms take the threat's.

    Parameters
    ----------
    name
        The class, such as ``LinfPGD`` or ``L2CarliniWagnerAttack``.
    options
        What its constructor takes. Step sizes not given are the library's own, shares of eps.

    Raises
    ------
    ConfigError
        foolbox is not installed, or has no such attack or option.
    """

    library: ClassVar[str] = "foolbox"
    distribution: ClassVar[str] = "foolbox"
    install: ClassVar[str] = "pip install 'adversarial-purifier[foolbox]'"

    def __post_init__(self) -> None:
        foolbox = self._import("foolbox")
        base = foolbox.attacks.base
        kinds = {
            name
            for name, kind in vars(foolbox.attacks).items()
            if isinstance(kind, type) and issubclass(kind, base.Attack) and not inspect.isabstract(kind)
        }
        self._check_name(kinds - {*FOOLBOX_EXCLUDED})
        taken = parameters_of(getattr(foolbox.attacks, self.name))
        self._check_options(taken.keys() - {"distance", "constraint", "args", "kwargs"})
        asks = any(word in self.name for word in FOOLBOX_QUERIES)
        self._settle(norms=self._norms(foolbox, taken), needs="labels" if asks else "gradient")

    def _norms(self, foolbox: Any, taken: dict[str, Any]) -> tuple[str, ...]:
        if "constraint" in taken:
            return "linf", "l2"
        if "distance" in taken:
            return ALL
        own = self._made(foolbox).distance
        return tuple(norm for norm in ALL if getattr(foolbox.distances, norm) == own)

    def _made(self, foolbox: Any, **settings: object) -> Any:
        try:
            return getattr(foolbox.attacks, self.name)(**{**self.options, **settings})
        except ImportError as error:
            raise self._reject(
                f"{self.name} needs {error.name}, which is not installed: pip install {error.name}"
            ) from error
        except TypeError as error:
            raise self._reject(f"{self.name} rejects its options: {error}") from error

    def _run(self, model: Shown, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        foolbox = self._import("foolbox")
        taken = parameters_of(getattr(foolbox.attacks, self.name))
        settings = {"distance": getattr(foolbox.distances, threat.norm), "constraint": threat.norm}
        attack = self._made(foolbox, **{key: value for key, value in settings.items() if key in taken})
        minimal = isinstance(attack, foolbox.attacks.base.MinimizationAttack)
        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        found: Tensor = attack(seen, pixels, labels, epsilons=None if minimal else threat.eps)[1]
        return found
