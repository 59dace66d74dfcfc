"""Attacks of torchattacks (Kim 2020) against a target: ``torchattacks:PGD,steps=10``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from purifier.attacking.threat import Threat

from ._adapter import ALL, NAMES, Adapter, TargetModel, parameters_of, rescaled

TORCHATTACKS_NORMS: dict[str, tuple[str, ...]] = {
    "APGD": ("linf", "l2"),
    "APGDT": ("linf", "l2"),
    "AutoAttack": ("linf", "l2"),
    "CW": ("l2",),
    "DeepFool": ("l2",),
    "EADEN": ("l2", "l1"),
    "EADL1": ("l1",),
    "FAB": ("linf", "l2"),
    "GN": ALL,
    "JSMA": (),
    "OnePixel": (),
    "PGDL2": ("l2",),
    "PGDRSL2": ("l2",),
    "Pixle": (),
    "SparseFool": (),
    "Square": ("linf", "l2"),
}
"""The "Distance Measure" in the library's documentation, if it is not just linf; empty for counts of pixels.

FAB lists l1 too, but fails in it (3.5.1).
"""
TORCHATTACKS_QUERIES = {"GN": "labels", "SPSA": "scores", "Square": "scores"}
"""Attacks that use no gradient."""
TORCHATTACKS_EXCLUDED = ("LGV", "MultiAttack", "VANILA")
"""These train or combine models and attacks, or change nothing."""


@dataclass(frozen=True)
class TorchattacksAttack(Adapter):
    """An attack of torchattacks 3.5, by its name there, on the device of the images.

    The attack gets the threat's eps and, if it supports several norms, the threat's norm. ``alpha``, a step in pixel
    units, by default keeps the library's ratio to eps. Jitter's own ``scale``, which here means another thing, keeps
    the library's default.

    Parameters
    ----------
    name
        The class, such as ``PGD`` or ``PGDL2``.
    options
        Arguments of its constructor.

    Raises
    ------
    ConfigError
        torchattacks is not installed, or has no such attack or option.
    """

    library: ClassVar[str] = "torchattacks"
    distribution: ClassVar[str] = "torchattacks"
    install: ClassVar[str] = (
        "pip install --no-deps torchattacks && pip install requests tqdm scipy "
        "(its own dependencies would downgrade requests to 2.25)"
    )

    def __post_init__(self) -> None:
        torchattacks = self._import("torchattacks")
        self._check_name(set(torchattacks.__all__) - {*TORCHATTACKS_EXCLUDED})
        self._check_options(parameters_of(getattr(torchattacks, self.name)).keys() - {"model"})
        self._declare(
            norms=TORCHATTACKS_NORMS.get(self.name, ("linf",)), needs=TORCHATTACKS_QUERIES.get(self.name, "gradient")
        )

    def _run(self, model: TargetModel, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        kind = getattr(self._import("torchattacks"), self.name)
        parameters = parameters_of(kind)
        settings: dict[str, object] = {"norm": NAMES[threat.norm], "seed": seed}
        if "n_classes" in parameters:
            settings["n_classes"] = model.classes(pixels)
        settings |= rescaled(parameters, "alpha", threat.eps)
        settings |= {"eps": threat.eps, "max_epsilon": threat.eps}
        known = {key: value for key, value in settings.items() if key in parameters}
        found: Tensor = kind(model, **{**known, **self.options})(pixels, labels)
        return found
