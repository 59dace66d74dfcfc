"""guard(): a purifier in front of a classifier, under the classifier's own signature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, overload

import onnxruntime
from onnx import ModelProto
from torch import nn

from ..classifiers.loading import is_onnx_file, read_classifier
from ..contracts.checkpoint import load
from ..contracts.purifier import Purifier
from ..data.preprocessing import read_preprocessing
from ..errors import ConfigError
from ..onnx.reader import read_onnx
from ..onnx.runtime import Providers
from ..onnx.weights import SplitModel
from ..output import Output
from ..vocabulary import OnBadPixels, OnReject, OutputKind
from .module import GuardedModule
from .session import GuardedSession

Guard: TypeAlias = GuardedModule | GuardedSession


@overload
def guard(
    model: nn.Module,
    purifier: str | Path | Purifier,
    *,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    score: bool = False,
    on_reject: OnReject = "ignore",
    abstain: int | None = None,
    on_bad_pixels: OnBadPixels = "raise",
    seed: int | None = None,
    check: bool = True,
) -> GuardedModule: ...
@overload
def guard(
    model: ModelProto,
    purifier: str | Path | Purifier,
    *,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    score: bool = False,
    on_reject: OnReject = "ignore",
    abstain: int | None = None,
    on_bad_pixels: OnBadPixels = "raise",
    image_shape: tuple[int, int, int] | None = None,
    feed: Mapping[str, Any] | None = None,
    providers: Providers | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
    cache: bool = True,
) -> GuardedSession: ...
@overload
def guard(
    model: str | Path,
    purifier: str | Path | Purifier,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    score: bool = False,
    on_reject: OnReject = "ignore",
    abstain: int | None = None,
    on_bad_pixels: OnBadPixels = "raise",
    seed: int | None = None,
    check: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    feed: Mapping[str, Any] | None = None,
    providers: Providers | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
    cache: bool = True,
) -> Guard: ...


def guard(
    model: nn.Module | ModelProto | str | Path,
    purifier: str | Path | Purifier,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    score: bool = False,
    on_reject: OnReject = "ignore",
    abstain: int | None = None,
    on_bad_pixels: OnBadPixels = "raise",
    seed: int | None = None,
    check: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    feed: Mapping[str, Any] | None = None,
    providers: Providers | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
    cache: bool = True,
) -> Guard:
    """Put a purifier in front of a classifier.

    Parameters
    ----------
    model
        A torch module or ONNX ``ModelProto``, or a MODEL spec: ``file.onnx``, ``file.pt2``,
        ``package.module:factory``, ``torchvision:NAME[@WEIGHTS]``, ``timm:NAME``, ``hf:FOLDER``, ``demo``.
    purifier
        A ``Purifier``, or a PURIFIER spec: ``file.safetensors``, ``NAME``, ``NAME:key=value,...``, or one that comes
        with the package, such as ``demo``. A torch guard puts it into evaluation mode, and unless it was in training
        mode, its weights no longer require gradients.
    weights, random_weights
        For a MODEL spec: a file of weights for ``package.module:factory`` or a library's classifier, which otherwise
        has its own; or random weights for a library's, for a trial.
    preprocessing
        How the classifier wants its images: a ``Preprocessing`` or a dict of its fields, ``"imagenet"``, torchvision's
        weights, ``weights.transforms()`` or ``Compose``, a timm data config, or a Hugging Face image processor.
        By default a classifier of a library (``torchvision:``, ``timm:``, ``hf:``) says so itself, any other torch
        classifier takes pixels (float, NCHW, [0, 1]), and for an ONNX classifier it is inferred from the input's type
        and shape (uint8 means 0-255, channels last means NHWC).
    input
        The position of the image among the arguments, or its parameter name; by default the first argument of a torch
        classifier, and the only possible input of an ONNX classifier.
    output
        The position or name of the output that is the classifier's answer, for attacks, judging and rejection; the
        guard returns all outputs. By default the one called ``logits``, else the only one that can be the answer. The
        name of a value inside an ONNX graph makes it one more output.
    output_kind
        What the answer is. ``logits``: (N, K). ``probabilities``: (N, K), with a sum of 1. ``binary-logit`` and
        ``binary-probability``: one number per image for two classes, (N,) or (N, 1); class 1 if it is above 0, or
        above 0.5. ``label``, for an ONNX classifier: the class alone, a number or a string, (N,) or (N, 1).
    score
        Also return how unusual each image is: a module returns ``(output, score)``, a session has the last output
        ``purifier_score`` (followed by ``purifier_rejected`` if the purifier is calibrated).
    on_reject
        What to do with rejected images: those whose score is NaN or above the purifier's threshold, which ``purifier
        calibrate`` finds. ``ignore``: nothing. ``flag``: also return which images are rejected, bool (N,): a module
        returns ``(output, rejected)`` or ``(output, score, rejected)``, a session has the last output
        ``purifier_rejected``. ``abstain``: replace their answers by NaN, or by certainty of one class. ``raise``: raise
        ``RejectedError`` for the batch. ``reclassify``: replace their answers by those of the purifier's own
        classifier, as ``output_kind``. Of a torch classifier's outputs only the answer is replaced, which is tried on
        two images at once; in a graph all that is computed from it follows, and NaN is refused if another output would
        still name a class.
    abstain
        With ``on_reject="abstain"``: the class whose logit becomes 0, while all others become -inf. Probabilities
        become 1 and 0, a binary logit becomes infinite.
    on_bad_pixels
        What to do with a bad image: one with NaN, infinity or values outside [0, 1] (as pixels). ``raise``: raise
        ``PixelError``, which names the bad images' positions. ``reject``: treat it as a rejected one; needs
        ``on_reject`` ``flag`` or ``abstain``. ``clamp``: clamp finite values to [0, 1], such as those of resized images
        that overshoot, and raise for NaN and infinity. The purifier sees a black image in place of a bad one, and other
        images are answered as without it. Where no error can be raised (exported files, traces, ``check=False``) and
        nothing else is chosen, a bad image gets no answer: NaN, and -1 for a label.
    seed
        For a torch classifier: fixes the noise of a random purifier; by default it follows torch's global generator.
    check
        For a torch classifier: False raises no error for bad images, because that waits for a GPU; they get no answer
        (NaN) instead, as in an exported file. So do they where values cannot be read, such as in an export or under
        ``torch.func.vmap``.
    image_shape
        For an ONNX classifier: (C, H, W) of the images, where it leaves their sizes free. The guard then takes no
        others.
    feed
        For an ONNX classifier: values for its other inputs, by name, where ``run`` is not given them. A value with a
        row per image may have a single row, for all.
    providers, sess_options
        For an ONNX classifier: as for ``onnxruntime.InferenceSession``; ``providers`` may also be the policy by which
        ONNX Runtime chooses among the devices it finds: ``prefer-gpu``, ``prefer-npu``, ``prefer-cpu`` (an error if
        there is none), ``max-performance``, ``max-efficiency`` or ``min-overall-power``. By default CUDA if it loads,
        else the CPU.
    cache
        For an ONNX classifier: False neither takes the purifier's graph from the user's cache folder nor keeps it
        there; nor does the environment variable ``PURIFIER_CACHE=0``.

    Returns
    -------
    GuardedModule or GuardedSession
        An ``nn.Module`` for a torch classifier, an ``onnxruntime.InferenceSession`` for an ONNX one.

    Raises
    ------
    PurifierError
        The model or purifier cannot be read, or the two do not fit together.
    """
    chosen, preprocessing = _read(model, weights, random_weights, preprocessing)
    if isinstance(chosen, GuardedModule):
        raise ConfigError("model: this model is already guarded; guard its .classifier instead")
    if not isinstance(chosen, nn.Module | ModelProto | SplitModel):
        raise ConfigError(
            f"model: expected a torch.nn.Module, an onnx.ModelProto or a MODEL spec, got {type(chosen).__name__}"
        )
    if not isinstance(purifier, Purifier | str | Path):
        raise ConfigError(f"purifier: expected a Purifier or a PURIFIER spec, got {type(purifier).__name__}")
    of_sessions = {"image_shape": image_shape, "feed": feed, "providers": providers, "sess_options": sess_options}
    of_sessions["cache"] = None if cache is True else cache
    of_modules = {"seed": seed, "check": None if check is True else check}
    _check_unused(chosen, of_sessions if isinstance(chosen, nn.Module) else of_modules)
    answer = Output(output, output_kind)
    if answer.labels and isinstance(chosen, nn.Module):
        raise ConfigError(
            "output_kind: 'label' is for an ONNX classifier, whose file says how many classes there are; let "
            f"{type(chosen).__name__} return logits or probabilities"
        )
    loaded = purifier if isinstance(purifier, Purifier) else load(purifier)
    if isinstance(chosen, ModelProto | SplitModel):
        wanted = None if preprocessing is None else read_preprocessing(preprocessing)
        return GuardedSession(
            chosen,
            loaded,
            preprocessing=wanted,
            input=input,
            output=answer,
            score=score,
            on_reject=on_reject,
            abstain=abstain,
            on_bad_pixels=on_bad_pixels,
            image_shape=image_shape,
            feed=feed,
            providers=providers,
            sess_options=sess_options,
            file=str(model) if isinstance(model, str | Path) else None,
            cache=cache,
        )
    if not isinstance(purifier, Purifier):
        weight = next(chosen.parameters(), None)
        loaded = loaded if weight is None else loaded.to(weight.device)
    return GuardedModule(
        chosen,
        loaded,
        preprocessing=read_preprocessing(preprocessing),
        input=0 if input is None else input,
        output=answer,
        score=score,
        on_reject=on_reject,
        abstain=abstain,
        on_bad_pixels=on_bad_pixels,
        seed=seed,
        check=check,
    )


def _read(model: Any, weights: str | Path | None, random_weights: bool, preprocessing: Any) -> tuple[Any, Any]:
    """The model itself, if this is a file or a MODEL spec, and its preprocessing."""
    if isinstance(model, str | Path) and is_onnx_file(model) and weights is None and not random_weights:
        return read_onnx(str(model)), preprocessing
    if isinstance(model, str | Path):
        return read_classifier(model, weights=weights, random_weights=random_weights, preprocessing=preprocessing)
    if weights is not None or random_weights:
        raise ConfigError(f"weights: only a MODEL spec takes weights; this {type(model).__name__} has its own")
    return model, preprocessing


def _check_unused(classifier: nn.Module | ModelProto | SplitModel, others: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if an option for the other kind of classifier is given."""
    for name, value in others.items():
        if value is not None:
            kind = "an ONNX" if isinstance(classifier, nn.Module) else "a torch"
            raise ConfigError(
                f"{name}: this option is for {kind} classifier, got {type(classifier).__name__}; leave it out"
            )
