"""A purifier and an ONNX classifier in one ONNX graph, with the handling of rejected images."""

from __future__ import annotations

from contextlib import nullcontext

from onnx import ModelProto

from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..output import LOGITS, Output
from ..rejection.policy import Rejection
from .cache_folder import no_cache
from .front_cache import kept_graph
from .graft import graft
from .image_input import ImageInput
from .metadata import add_metadata, purifier_metadata
from .names import OPSET, REJECTED, SCORE
from .opset import opset_of


def guarded_graph(
    classifier: ModelProto,
    image: ImageInput,
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    score: bool = False,
    rejection: Rejection | None = None,
    noise: bool = False,
    output: Output = LOGITS,
    cache: bool = True,
) -> ModelProto:
    """The classifier with the purifier in front: its inputs and outputs, plus those for score, rejection and noise.

    With ``cache`` the purifier's graph may come from the user's cache, see ``kept_graph``.

    Raises
    ------
    ClassifierError, ConfigError, PluginError
        As for ``purifier_graph`` and ``graft``.
    """
    rejection = rejection or Rejection()
    with nullcontext() if cache else no_cache():
        front = kept_graph(
            purifier,
            preprocessing,
            image_shape=image.shape,
            score=score,
            rejection=rejection,
            noise=noise,
            opset=max(OPSET, opset_of(classifier)),
            output=output,
        )
    shown = shown_outputs(score, rejection)
    model = graft(front, classifier, image.name, shown=shown, rejection=rejection, output=output)
    add_metadata(model, purifier_metadata(purifier, rejection, noise))
    return model


def shown_outputs(score: bool, rejection: Rejection) -> tuple[str, ...]:
    """The outputs that a guard's graph adds after the classifier's."""
    raises = rejection.on_reject == "raise"
    flags = rejection.on_reject == "flag" or (score and rejection.threshold is not None)
    return (*((SCORE,) if score or raises else ()), *((REJECTED,) if flags or raises else ()))
