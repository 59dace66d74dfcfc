"""Finds the image among a classifier's arguments, and reads a classifier that has no guard."""

from __future__ import annotations

import inspect
from typing import Any

from onnx import ModelProto
from torch import nn

from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..data.pixels import read_preprocessing
from ..errors import ConfigError, about
from ..onnx.image_input import image_input, preprocessing_for
from ..output import Output


def find_input(classifier: nn.Module, input: int | str) -> tuple[int | None, str]:
    """The image's position (None if keyword only) and parameter name in the classifier's forward.

    Raises
    ------
    ConfigError
        The classifier takes no such argument.
    """
    try:
        parameters = list(inspect.signature(classifier.forward).parameters.values())
    except ValueError:  # a traced module has no signature
        parameters = [inspect.Parameter("images", inspect.Parameter.VAR_POSITIONAL)]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    takes = f"the classifier takes {', '.join(p.name for p in parameters) or 'no argument'}"
    if isinstance(input, int):
        if input < 0 or (input >= len(positional) and not open_ended):
            raise ConfigError(f"input: {takes}, got position {input}; give a position or a name")
        return input, positional[input] if input < len(positional) else f"argument {input}"
    if input in positional:
        return positional.index(input), input
    if not open_ended and input not in [p.name for p in parameters]:
        raise ConfigError(f"input: {takes}, got {input!r}")
    return None, input


def classifier_alone(
    model: nn.Module | ModelProto,
    *,
    preprocessing: Any,
    input: int | str | None,
    output: Output,
    file: str | None = None,
) -> PixelClassifier:
    """A classifier in pixel space without a guard, from the same options as ``purifier.guard``.

    ``file`` is an ONNX model's, for errors.

    Raises
    ------
    ClassifierError, ConfigError
        The classifier takes no such input, or the preprocessing does not fit it.
    """
    if isinstance(model, ModelProto):
        with about(file):
            image = image_input(model, input)
            wanted = None if preprocessing is None else read_preprocessing(preprocessing)
            return pixel_classifier(model, preprocessing_for(image, wanted), image.name, output, file)
    position, name = find_input(model, 0 if input is None else input)
    return pixel_classifier(model, read_preprocessing(preprocessing), 0 if position == 0 else name, output)
