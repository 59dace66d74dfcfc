"""A purifier and an ONNX classifier in one ONNX graph, with what happens to refused images."""

from __future__ import annotations

from onnx import ModelProto

from .interfaces import Purifier
from .onnx_file import ImageInput
from .onnx_front import OPSET, REFUSED, SCORE, purifier_graph
from .onnx_graph import add_metadata, graft, opset_of, purifier_metadata
from .pixels import Preprocessing
from .refusal import Refusal


def guarded_graph(
    classifier: ModelProto,
    image: ImageInput,
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    score: bool = False,
    refusal: Refusal | None = None,
    noise: bool = False,
) -> ModelProto:
    """The classifier behind the purifier: its inputs and outputs, and those that score, refusal and noise add.

    Raises
    ------
    ClassifierError, ConfigError, PluginError
        As :func:`~purifier.onnx_front.purifier_graph` and :func:`~purifier.onnx_graph.graft`.
    """
    refusal = refusal or Refusal()
    front = purifier_graph(
        purifier,
        preprocessing,
        image_shape=image.shape,
        score=score,
        refusal=refusal,
        noise=noise,
        opset=max(OPSET, opset_of(classifier)),
    )
    model = graft(front, classifier, image.name, shown=shown_outputs(score, refusal), refusal=refusal)
    add_metadata(model, purifier_metadata(purifier, refusal, noise))
    return model


def shown_outputs(score: bool, refusal: Refusal) -> tuple[str, ...]:
    """The outputs that a guard's graph has after the classifier's."""
    raises = refusal.on_reject == "raise"
    flags = refusal.on_reject == "flag" or (score and refusal.threshold is not None)
    return (*((SCORE,) if score or raises else ()), *((REFUSED,) if flags or raises else ()))
