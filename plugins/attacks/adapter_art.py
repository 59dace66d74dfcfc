"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018): ``art:ProjectedGradientDescent,max_iter=40``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from purifier.attacking.threat import Threat
from purifier.torch_tools.norms import ORDERS

from ._adapter import ALL, Adapter, Shown, parameters_of, rescaled

ART_NORMS: dict[str, tuple[str, ...]] = {
    "AutoConjugateGradient": ALL,
    "AutoProjectedGradientDescent": ALL,
    "BasicIterativeMethod": ("linf",),
    "BoundaryAttack": ("l2",),
    "CarliniL2Method": ("l2",),
    "CarliniLInfMethod": ("linf",),
    "DeepFool": ("l2",),
    "ElasticNet": ("l2", "l1"),
    "FastGradientMethod": ALL,
    "HopSkipJump": ("linf", "l2"),
    "MomentumIterativeMethod": ALL,
    "NewtonFool": ("l2",),
    "ProjectedGradientDescent": ALL,
    "ProjectedGradientDescentNumpy": ALL,
    "ProjectedGradientDescentPyTorch": ALL,
    "RescalingAutoConjugateGradient": ALL,
    "SignOPTAttack": ("l2",),
    "SquareAttack": ALL,
    "ZooAttack": ("l2",),
}
"""The attacks on an image of its own that want logits, and the norms they minimise or bound."""
ART_QUERIES = {
    "BoundaryAttack": "labels",
    "HopSkipJump": "labels",
    "SignOPTAttack": "labels",
    "SquareAttack": "scores",
    "ZooAttack": "scores",
}
"""Attacks that follow no gradient."""


@dataclass(frozen=True)
class ArtAttack(Adapter):
    """An attack of ART 1.20, by its name in ``art.attacks.evasion``.

    ART works on NumPy arrays, so images go to the host and back with every question, whatever the device. The attack
    gets the threat's eps and, if it can work in several, its norm, and the whole batch at once. ``eps_step``, a step in
    pixel units, keeps the library's ratio to eps unless it is given.

    Parameters
    ----------
    name
        The class, such as ``ProjectedGradientDescent`` or ``HopSkipJump``.
    options
        What its constructor takes.

    Raises
    ------
    ConfigError
        ART is not installed, or has no such attack on images or no such option.
    """

    library: ClassVar[str] = "art"
    distribution: ClassVar[str] = "adversarial-robustness-toolbox"
    install: ClassVar[str] = "pip install 'adversarial-purifier[art]'"

    def __post_init__(self) -> None:
        self._check_name(ART_NORMS)
        taken = parameters_of(self._kind())
        self._check_options(taken.keys() - {"classifier", "estimator"})
        self._settle(norms=ART_NORMS[self.name], needs=ART_QUERIES.get(self.name, "gradient"))

    def _kind(self) -> Any:
        return getattr(self._import("art.attacks.evasion"), self.name)

    def _run(self, model: Shown, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        kind = self._kind()
        taken = parameters_of(kind)
        estimator = self._import("art.estimators.classification").PyTorchClassifier(
            model,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(pixels.shape[1:]),
            nb_classes=model.classes(pixels),
            clip_values=(0.0, 1.0),
            device_type="cpu" if pixels.device.type == "cpu" else "gpu",
        )
        settings: dict[str, object] = {
            "eps": threat.eps,
            "norm": ORDERS[threat.norm],
            **rescaled(taken, "eps_step", threat.eps),
        }
        settings |= {"batch_size": len(pixels), "targeted": False, "verbose": False}
        known = {key: value for key, value in settings.items() if key in taken}
        attack = kind(estimator, **{**known, **self.options})
        found = attack.generate(pixels.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found)
