"""Finds the image among a classifier's arguments, gives a guard the same ones, and reads a classifier without guard."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from onnx import ModelProto
from torch import nn

from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..data.preprocessing import read_preprocessing
from ..errors import ConfigError, about
from ..onnx.feeding import read_feed
from ..onnx.image_input import image_input, preprocessing_for
from ..output import Output

M = TypeVar("M", bound=nn.Module)


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


def class_like(base: type[M], classifier: nn.Module) -> type[M]:
    """A subclass of a guard's class whose ``forward`` has the classifier's signature, for frameworks that read it.

    They look up a model by the ``__name__`` of its class too, so that is the classifier's. Lightning's Trainer takes
    nothing but a ``LightningModule``: a guard of one inherits from its class, and so has its hooks.
    """
    try:
        own = inspect.signature(classifier.forward)
    except ValueError:  # a scripted or traced module has none
        return base

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs)

    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = own.replace(parameters=[myself, *own.parameters.values()])  # type: ignore[attr-defined]  # a function takes any attribute
    bases = (base, type(classifier)) if _is_lightning(classifier) else (base,)
    body = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__, "plain": base}
    return types.new_class(type(classifier).__name__, bases, {}, lambda space: space.update(body))


def _is_lightning(module: nn.Module) -> bool:
    return any(
        kind.__name__ == "LightningModule" and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for kind in type(module).__mro__
    )


def classifier_alone(
    model: nn.Module | ModelProto,
    *,
    preprocessing: Any,
    input: int | str | None,
    output: Output,
    file: str | None = None,
    feed: Mapping[str, Any] | None = None,
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
            given = read_feed(model, image.name, feed)
            return pixel_classifier(model, preprocessing_for(image, wanted), image.name, output, file, given)
    if feed is not None:
        raise ConfigError(f"feed: this option is for an ONNX classifier, got {type(model).__name__}; leave it out")
    position, name = find_input(model, 0 if input is None else input)
    return pixel_classifier(model, read_preprocessing(preprocessing), 0 if position == 0 else name, output)
