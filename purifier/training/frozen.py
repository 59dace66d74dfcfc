"""The classifier a purifier is trained for: what it must be, and that it stays as it is."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..classifier import PixelClassifier, are_probabilities, load_classifier, pixel_classifier
from ..data import ImageData
from ..errors import ConfigError, PurifierError, TrainingError
from ..onnx_file import image_input, infer_preprocessing
from ..onnx_gradient import OnnxGradientClassifier
from ..pixels import Preprocessing
from .recipe import Recipe

LOOKED_AT = 64
"""Images the classifier is tried on."""


def read_classifier(
    given: str | Path | nn.Module | ModelProto | PixelClassifier,
    *,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    input: int | str | None = None,
    gradients: bool = False,
) -> PixelClassifier:
    """A classifier from a MODEL spec, a module or an ONNX model; of ONNX one with gradients, if asked for."""
    if isinstance(given, PixelClassifier):
        return given
    model = load_classifier(given, weights=weights) if isinstance(given, str | Path) else given
    if isinstance(model, ModelProto):
        chosen = preprocessing or infer_preprocessing(image_input(model, input))
        return (OnnxGradientClassifier if gradients else pixel_classifier)(model, chosen, input)
    return pixel_classifier(model, preprocessing or Preprocessing(), input)


@torch.no_grad()
def check_classifier(classifier: PixelClassifier, recipe: Recipe, data: ImageData, device: torch.device) -> None:
    """Raise :class:`ConfigError` or :class:`TrainingError` if nothing can be learned from this classifier's answers."""
    if recipe.needs_gradients and not classifier.differentiable:
        raise ConfigError(
            f"this recipe needs gradients of the classifier, and {classifier.describe()} gives none; give the torch "
            "module (package.module:factory with --weights), or take the recipe denoise with attacks that need "
            "none: denoise:attacks=square, or denoise:attacks=transfer:surrogate=package.module:factory"
        )
    pixels, _ = data.batch(range(min(LOOKED_AT, len(data))))
    try:
        logits = classifier(pixels.to(device))
    except PurifierError:
        raise
    except Exception as error:  # torch, ONNX Runtime and the user's own module raise many kinds
        raise TrainingError(
            f"{classifier.describe()} fails on images {tuple(pixels.shape)} of {data.name} "
            f"({type(error).__name__}: {error}); does it take this size and preprocessing?"
        ) from error
    if are_probabilities(logits):
        raise ConfigError(
            f"{classifier.describe()} gives probabilities (all in [0, 1], their sums 1), whose gradients vanish where "
            "it is sure; give one that ends in logits: leave its softmax out"
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise TrainingError(
            f"labels of {data.name} go from {low} to {high}, expected 0 to {logits.shape[1] - 1}: the classifier has "
            f"{logits.shape[1]} classes; give the data it was trained on"
        )


def fingerprint(module: nn.Module) -> str:
    """A digest of all weights and buffers, equal only if every bit is."""
    digest = hashlib.sha256()
    for tensor in chain(module.parameters(), module.buffers()):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
