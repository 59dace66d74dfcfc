"""guard(): a purifier in front of a classifier, under the classifier's own signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias, overload

from onnx import ModelProto
from torch import nn

from ..classifiers.loading import load_classifier
from ..contracts.checkpoint import load
from ..contracts.purifier import Purifier
from ..data.pixels import read_preprocessing
from ..errors import ConfigError
from ..vocabulary import OnReject
from .module import GuardedModule
from .session import GuardedSession

Guard: TypeAlias = GuardedModule | GuardedSession


@overload
def guard(model: nn.Module, purifier: str | Path | Purifier, **options: Any) -> GuardedModule: ...
@overload
def guard(model: ModelProto, purifier: str | Path | Purifier, **options: Any) -> GuardedSession: ...
@overload
def guard(model: str | Path, purifier: str | Path | Purifier, **options: Any) -> Guard: ...


def guard(
    model: nn.Module | ModelProto | str | Path,
    purifier: str | Path | Purifier,
    *,
    preprocessing: Any = None,
    input: int | str | None = None,
    score: bool = False,
    on_reject: OnReject = "ignore",
    abstain: int | None = None,
    **options: Any,
) -> Guard:
    """Put a purifier in front of a classifier.

    Parameters
    ----------
    model
        A torch module or ONNX ``ModelProto``, or a MODEL spec: ``file.onnx``, ``file.pt2``,
        ``package.module:factory``, ``demo``.
    purifier
        A :class:`Purifier`, or a PURIFIER spec: ``file.safetensors``, ``NAME``, ``NAME:key=value,...``, ``demo``,
        ``demo-plain``.
    preprocessing
        How the classifier wants its images: a :class:`Preprocessing` or torchvision's ``weights.transforms()``.
        Without it a torch classifier takes pixels (float, NCHW, [0, 1]), and an ONNX classifier what its input's
        type and shape say (uint8 means 0-255, channels last means NHWC).
    input
        The image's position among the arguments, or its parameter name; the first if not given.
    score
        Also return how unusual each image is: ``(output, score)`` from a module, and a last output
        ``purifier_score`` from a session (and ``purifier_rejected``, if the purifier is calibrated).
    on_reject
        What to do with images that score above the purifier's threshold, or NaN; ``purifier calibrate`` finds the
        threshold. ``ignore``: nothing. ``flag``: also return which they are, bool (N,): ``(output, rejected)`` or
        ``(output, score, rejected)``, and a last output ``purifier_rejected`` from a session. ``abstain``: their logits
        become NaN, or certain of one class. ``raise``: a :class:`~purifier.errors.RejectedError` for the batch.
        ``reclassify``: their logits become the log-probabilities of the purifier's own classifier. Of an ONNX
        classifier with several outputs, ``logits`` or else the first floats (N, K) are replaced, and nothing else.
    abstain
        With ``on_reject="abstain"``: the class, whose logit becomes 0 and all others -inf.
    **options
        Of a module: ``seed`` (fixes the noise of a random purifier; by default it follows torch's global
        generator) and ``check=False`` (skips the range check, which waits for a GPU). Of a session: ``providers``,
        ``sess_options``.

    Returns
    -------
    GuardedModule or GuardedSession
        An ``nn.Module`` for a torch classifier, an ``onnxruntime.InferenceSession`` for an ONNX one.

    Raises
    ------
    PurifierError
        The model or purifier cannot be read, or the two do not fit together.
    """
    chosen = load_classifier(model) if isinstance(model, str | Path) else model
    if isinstance(chosen, GuardedModule):
        raise ConfigError("this model is guarded already; guard its .classifier instead")
    if not isinstance(chosen, nn.Module | ModelProto):
        raise ConfigError(
            f"model: expected a torch.nn.Module, an onnx.ModelProto or a MODEL spec, got {type(chosen).__name__}"
        )
    if not isinstance(purifier, Purifier | str | Path):
        raise ConfigError(f"purifier: expected a Purifier or a PURIFIER spec, got {type(purifier).__name__}")
    known = ("seed", "check") if isinstance(chosen, nn.Module) else ("providers", "sess_options")
    for name in options:
        if name not in known:
            raise ConfigError(f"guard() has no option {name!r} for this classifier; its options: {', '.join(known)}")
    loaded = purifier if isinstance(purifier, Purifier) else load(purifier)
    if isinstance(chosen, ModelProto):
        wanted = None if preprocessing is None else read_preprocessing(preprocessing)
        return GuardedSession(
            chosen,
            loaded,
            preprocessing=wanted,
            input=input,
            score=score,
            on_reject=on_reject,
            abstain=abstain,
            **options,
        )
    if not isinstance(purifier, Purifier):
        weight = next(chosen.parameters(), None)
        loaded = loaded if weight is None else loaded.to(weight.device)
    return GuardedModule(
        chosen,
        loaded,
        preprocessing=read_preprocessing(preprocessing),
        input=0 if input is None else input,
        score=score,
        on_reject=on_reject,
        abstain=abstain,
        **options,
    )
