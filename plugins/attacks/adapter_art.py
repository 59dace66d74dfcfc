"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018): ``art:ProjectedGradientDescent,max_iter=40``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from purifier.attacking.threat import Threat
from purifier.torch_tools.norms import ORDERS

from ._adapter import ALL, Adapter, TargetModel, parameters_of, rescaled

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
"""Attacks that perturb each image separately and need logits, and the norms they minimise or bound."""
ART_QUERIES = {
    "BoundaryAttack": "labels",
    "HopSkipJump": "labels",
    "SignOPTAttack": "labels",
    "SquareAttack": "scores",
    "ZooAttack": "scores",
}
"""Attacks that use no gradient."""


@dataclass(frozen=True)
class ArtAttack(Adapter):
    """An attack of ART 1.20, by its name in ``art.attacks.evasion``.

    ART works on NumPy arrays, so images go to the host and back on every call, whatever the device. The attack gets the
    whole batch at once, the threat's eps and, if it supports several norms, the threat's norm. ``eps_step``, a step in
    pixel units, by default keeps the library's ratio to eps.

    Parameters
    ----------
    name
        The class, such as ``ProjectedGradientDescent`` or ``HopSkipJump``.
    options
        Arguments of its constructor.

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
        parameters = parameters_of(self._kind())
        self._check_options(parameters.keys() - {"classifier", "estimator"})
        self._declare(norms=ART_NORMS[self.name], needs=ART_QUERIES.get(self.name, "gradient"))

    def _kind(self) -> Any:
        return getattr(self._import("art.attacks.evasion"), self.name)

    def _run(self, model: TargetModel, pixels: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        kind = self._kind()
        parameters = parameters_of(kind)
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
            **rescaled(parameters, "eps_step", threat.eps),
        }
        settings |= {"batch_size": len(pixels), "targeted": False, "verbose": False}
        known = {key: value for key, value in settings.items() if key in parameters}
        attack = kind(estimator, **{**known, **self.options})
        found = attack.generate(pixels.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found)
