"""Attacks of foolbox (Rauber et al. 2020) against a target: ``foolbox:LinfPGD,steps=40``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from purifier.attacking.threat import Threat

from ._adapter import ALL, Adapter, TargetModel, parameters_of

FOOLBOX_QUERIES = ("Noise", "Contrast", "Blur", "Inversion", "Boundary", "HopSkipJump")
"""Words in the names of attacks that use no gradient; all of them use only the predicted label."""
FOOLBOX_EXCLUDED = ("BinarizationRefinementAttack", "DatasetAttack", "GenAttack", "PointwiseAttack", "SpatialAttack")
"""These need starting points, a data set or a target class, or have no distance."""


@dataclass(frozen=True)
class FoolboxAttack(Adapter):
    """An attack of foolbox 3, by its name in ``foolbox.attacks``, on the device of the images.

    Attacks with a fixed budget get the threat's eps. Attacks that look for the smallest change do so, and the core
    projects results beyond eps. Those that support several norms get the threat's.

    Parameters
    ----------
    name
        The class, such as ``LinfPGD`` or ``L2CarliniWagnerAttack``.
    options
        Arguments of its constructor. Step sizes default to the library's own, which are fractions of eps.

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
        parameters = parameters_of(getattr(foolbox.attacks, self.name))
        self._check_options(parameters.keys() - {"distance", "constraint", "args", "kwargs"})
        labels_only = any(word in self.name for word in FOOLBOX_QUERIES)
        self._declare(norms=self._norms(foolbox, parameters), needs="labels" if labels_only else "gradient")

    def _norms(self, foolbox: Any, parameters: dict[str, Any]) -> tuple[str, ...]:
        if "constraint" in parameters:
            return "linf", "l2"
        if "distance" in parameters:
            return ALL
        own = self._made(foolbox).distance
        return tuple(norm for norm in ALL if getattr(foolbox.distances, norm) == own)

    def _made(self, foolbox: Any, **settings: object) -> Any:
        try:
            return getattr(foolbox.attacks, self.name)(**{**self.options, **settings})
        except ImportError as error:
            raise self._error(
                f"{self.name} needs {error.name}, which is not installed: pip install {error.name}"
            ) from error
        except TypeError as error:
            raise self._error(f"{self.name} does not accept its options: {error}") from error

    def _run(self, model: TargetModel, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        foolbox = self._import("foolbox")
        parameters = parameters_of(getattr(foolbox.attacks, self.name))
        settings = {"distance": getattr(foolbox.distances, threat.norm), "constraint": threat.norm}
        attack = self._made(foolbox, **{key: value for key, value in settings.items() if key in parameters})
        minimal = isinstance(attack, foolbox.attacks.base.MinimizationAttack)
        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        found: Tensor = attack(seen, pixels, labels, epsilons=None if minimal else threat.eps)[1]
        return found
