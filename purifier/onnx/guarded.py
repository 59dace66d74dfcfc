"""A purifier and an ONNX classifier in one ONNX graph, with the handling of rejected images."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypedDict, Unpack

from onnx import ModelProto

from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..output import LOGITS, Output
from ..rejection.policy import Rejection
from .cache_folder import no_cache
from .front_cache import kept_graft, kept_graph
from .graft import graft
from .image_input import ImageInput
from .metadata import add_metadata, purifier_metadata
from .names import OPSET, REJECTED, SCORE
from .opset import is_rewritten, opset_of
from .weights import SplitModel, Weights, with_weights, without_weights


class GuardOptions(TypedDict, total=False):
    """The keyword arguments of ``guarded_parts``."""

    score: bool
    rejection: Rejection | None
    noise: bool
    output: Output
    cache: bool


def guarded_parts(
    classifier: SplitModel,
    image: ImageInput,
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    score: bool = False,
    rejection: Rejection | None = None,
    noise: bool = False,
    output: Output = LOGITS,
    cache: bool = True,
) -> tuple[ModelProto, Weights]:
    """The classifier with the purifier in front: its inputs and outputs, plus those for score, rejection and noise.

    Bad images (see ``bad_images``) get no answer, or that of a rejected image, as ``rejection`` says. The classifier's
    large weights are apart, if nothing needs their values: ``with_weights`` puts them back. With ``cache`` the
    graph, or the purifier's, may come from the user's cache, see ``kept_graft``.

    Raises
    ------
    ClassifierError, ConfigError, PluginError
        As for ``purifier_graph`` and ``graft``.
    """
    rejection = rejection or Rejection()
    opset = max(OPSET, opset_of(classifier.bare))
    shown = shown_outputs(score, rejection)
    weights: Weights = {}
    if classifier.bare.functions or is_rewritten(classifier.bare, opset):
        bare = classifier.whole
    else:
        bare, others = without_weights(classifier.bare)
        weights = {**classifier.weights, **others}
    options = {
        "image_shape": image.shape,
        "score": score,
        "rejection": rejection,
        "noise": noise,
        "opset": opset,
        "output": output,
    }

    def grafted() -> ModelProto:
        front = kept_graph(purifier, preprocessing, **options, checked=True)
        return graft(front, bare, image.name, shown=shown, rejection=rejection, output=output)

    with nullcontext() if cache else no_cache():
        asked = {**options, "preprocessing": preprocessing, "image": image.name, "shown": shown}
        model = kept_graft(grafted, purifier, bare, asked)
    add_metadata(model, purifier_metadata(purifier, rejection, noise))
    return model, weights


def guarded_graph(
    classifier: ModelProto,
    image: ImageInput,
    purifier: Purifier,
    preprocessing: Preprocessing,
    **options: Unpack[GuardOptions],
) -> ModelProto:
    """``guarded_parts`` as one model.

    Raises
    ------
    ClassifierError, ConfigError, PluginError
        As for ``purifier_graph`` and ``graft``.
    """
    return with_weights(*guarded_parts(SplitModel(classifier), image, purifier, preprocessing, **options))


def shown_outputs(score: bool, rejection: Rejection) -> tuple[str, ...]:
    """The outputs that a guard's graph adds after the classifier's."""
    raises = rejection.on_reject == "raise"
    flags = rejection.on_reject == "flag" or (score and rejection.threshold is not None)
    return (*((SCORE,) if score or raises else ()), *((REJECTED,) if flags or raises else ()))
