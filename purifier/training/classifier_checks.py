"""Checks of the classifier that a purifier is trained for, and that training does not change it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..classifiers.channels import channels_advice
from ..classifiers.loading import read_classifier
from ..classifiers.logits import are_probabilities
from ..classifiers.pixel_classifier import OnnxPixelClassifier, PixelClassifier
from ..data.images import ImageData
from ..errors import ConfigError, TrainingError
from ..foreign_code import explained
from ..guards.module import GuardedModule
from ..guards.precision import dtype_advice
from ..guards.signature import classifier_alone
from ..output import LOGITS, Output
from ..torch_tools.fingerprint import bits_of
from .recipe import Recipe

CHECKED_IMAGES = 64
"""How many images the classifier is checked on."""


WITHOUT_GRADIENTS = (
    "use the torch module (package.module:factory with --weights) without detach, no_grad or rounding, or use the "
    "recipe denoise with attacks that need no gradients: denoise:attacks=square, or "
    "denoise:attacks=transfer:surrogate=package.module:factory;weights=FILE"
)


def classifier_for(
    recipe: Recipe,
    given: str | Path | nn.Module | ModelProto | None,
    weights: str | Path | None,
    random_weights: bool,
    preprocessing: Any,
    input: int | str | None,
    output: Output,
) -> PixelClassifier | None:
    """The classifier that a recipe needs, from the same arguments as ``purifier.guard``; None if it needs none."""
    name = type(recipe).__name__.lower()
    if not recipe.needs_classifier:
        options = (given, weights, preprocessing, input)
        if output != LOGITS or random_weights or any(option is not None for option in options):
            raise ConfigError(f"the recipe {name} takes no classifier; leave it out, or use denoise or robust")
        return None
    if given is None:
        raise ConfigError(f"the recipe {name} needs the classifier that the purifier is for; give classifier=")
    if (weights is not None or random_weights) and not isinstance(given, str | Path):
        raise ConfigError("weights are only for a MODEL spec such as package.module:factory; a module has its own")
    model: Any = given
    if isinstance(given, str | Path):
        model, preprocessing = read_classifier(
            given, weights=weights, random_weights=random_weights, preprocessing=preprocessing
        )
    if isinstance(model, GuardedModule):
        raise ConfigError("classifier: this model is already guarded; give its .classifier")
    if not isinstance(model, nn.Module | ModelProto):
        raise ConfigError(
            f"classifier: expected a torch.nn.Module, an onnx.ModelProto or a MODEL spec, got {type(model).__name__}"
        )
    if isinstance(model, nn.Module) and any(
        is_lazy(tensor) or tensor.is_meta for tensor in chain(model.parameters(), model.buffers())
    ):
        raise ConfigError(
            f"classifier: {type(model).__name__} has no weights yet; load them, or run it on an image once"
        )
    found = classifier_alone(model, preprocessing=preprocessing, input=input, output=output)
    if recipe.needs_gradients and not found.differentiable and found.queries_only:
        raise ConfigError(
            f"this recipe needs gradients of the classifier, but {found.describe()} has none ({found.queries_only}); "
            f"{WITHOUT_GRADIENTS}"
        )
    return found


def check_classifier(classifier: PixelClassifier, recipe: Recipe, data: ImageData, device: torch.device) -> None:
    """Raise ``ConfigError`` or ``TrainingError`` if nothing can be learned from this classifier.

    The weights and buffers of a classifier that changes when called are restored.
    """
    pixels = data.batch(data.spread(CHECKED_IMAGES))[0].to(device)
    original, before, state = pixels.clone(), fingerprint(classifier), copy.deepcopy(classifier.state_dict())
    failure = f"{classifier.describe()} fails on images {tuple(pixels.shape)} of {data.name}"
    advice = "check that it takes this size and preprocessing" + dtype_advice(
        classifier, classifier.preprocessing.dtype
    )
    with explained(failure, TrainingError, lambda: channels_advice(classifier, pixels) or advice):
        with torch.no_grad():
            logits = classifier(pixels)
            classifier(pixels[:1])  # batches can have any size
        if not torch.equal(pixels, original):
            raise TrainingError(f"{classifier.describe()} changes its input in place; make it work on a copy")
        gradient = _gradient(classifier, pixels) if recipe.needs_gradients and classifier.differentiable else None
    if fingerprint(classifier) != before:
        classifier.load_state_dict(state)
        raise TrainingError(
            f"{classifier.describe()} changes its weights or buffers when called in evaluation mode; remove this side "
            "effect"
        )
    if logits.isnan().any() or (recipe.needs_gradients and logits.isinf().any()):
        raise TrainingError(f"{classifier.describe()} returns NaN or infinity for an image of {data.name}; fix it")
    if recipe.needs_gradients and (gradient is None or not gradient.any()):  # rounding makes gradients 0
        raise ConfigError(
            f"this recipe needs gradients of the classifier, but {classifier.describe()} has none; {WITHOUT_GRADIENTS}"
        )
    if gradient is not None and not gradient.isfinite().all():
        raise TrainingError(
            f"{classifier.describe()} has gradients that are NaN or infinite; fix it: look for a root or logarithm of "
            "0, or a division by 0"
        )
    if recipe.needs_gradients and are_probabilities(logits):
        raise ConfigError(
            f"{classifier.describe()}: expected logits, got probabilities (in [0, 1] with sum 1), whose gradients "
            "vanish where it is confident; remove its softmax, or give output_kind='probabilities' (--output-kind)"
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if data.labelled and (low < 0 or high >= logits.shape[1]):
        raise TrainingError(
            f"labels of {data.name} go from {low} to {high}, expected 0 to {logits.shape[1] - 1}: the classifier has "
            f"{logits.shape[1]} classes; use the data it was trained on"
        )


def fingerprint(classifier: PixelClassifier) -> dict[str, Any]:
    """A digest of every bit of the classifier's weights, and its input, output and preprocessing."""
    digest = hashlib.sha256()
    if isinstance(classifier, OnnxPixelClassifier):
        digest.update(classifier.digest)
    for tensor in chain(classifier.parameters(), classifier.buffers()):
        digest.update(bits_of(tensor))
    for value in classifier.state_dict().values():
        if not isinstance(value, Tensor):  # for example of quantised layers
            digest.update(repr(value).encode())
    input = classifier.name if isinstance(classifier, OnnxPixelClassifier) else getattr(classifier, "input", 0)
    preprocessing = dataclasses.asdict(classifier.preprocessing)
    for name in ("resize", "crop", "interpolation"):  # what is done to files before they are the classifier's images
        del preprocessing[name]
    found = {"sha256": digest.hexdigest(), "input": input, "preprocessing": preprocessing}
    if classifier.output != LOGITS:  # left out by default, so that runs from before there was a choice can be resumed
        found["output"] = dataclasses.asdict(classifier.output)
    return found


def _gradient(classifier: PixelClassifier, pixels: Tensor) -> Tensor | None:
    """The gradient of a random weighted sum of the logits; None if there is none."""
    leaf = (0.98 * pixels + 0.01).requires_grad_()  # a root may be infinitely steep at black, which training avoids
    with torch.enable_grad():
        logits = classifier(leaf)
    if not logits.requires_grad:
        return None
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    return torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)[0]
