"""guard(): a purifier in front of a classifier, under the classifier's own signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, overload

import torch
from onnx import ModelProto
from torch import Tensor, nn

from .checkpoint import load
from .classifier import PixelClassifier, load_classifier, pixel_classifier
from .errors import ConfigError, PixelError, PluginError
from .interfaces import Purifier, dtype_of
from .pixels import Preprocessing, check_range, check_scale, check_shape, into_range, read_preprocessing
from .refusal import OnReject, check_exportable, refusal_of
from .seeding import SampleGenerator
from .session import GuardedSession as GuardedSession
from .signature import find_input


class GuardedModule(nn.Module):
    """A torch classifier behind a purifier; made by :func:`guard`.

    ``forward`` has the classifier's own signature and return value. The image is purified, whether it comes by
    position or by keyword; every other argument is handed on as it came. The purifier stays in evaluation mode.
    With ``score=True`` the result is ``(output, score)``, the score (N,); with ``on_reject="flag"`` it is
    ``(output, refused)``, refused bool (N,); with both, ``(output, score, refused)``.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing,
        input: int | str = 0,
        score: bool = False,
        on_reject: OnReject = "ignore",
        abstain: int | None = None,
        seed: int | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.refusal = refusal_of(purifier, on_reject, abstain)
        self.classifier, self.purifier = classifier, purifier.eval()
        self.preprocessing, self.score, self.seed, self.check = preprocessing, score, seed, check
        self.position, self.input = find_input(classifier, input)
        self.training = classifier.training

    def train(self, mode: bool = True) -> GuardedModule:
        """Switch the classifier; the purifier filters the same way in both modes."""
        self.training = mode
        try:
            self.classifier.train(mode)
        except NotImplementedError:
            # A torch.export module has its mode baked in; it can be evaluated, and refuses to be trained itself.
            if mode:
                raise
        return self

    def pixel_classifier(self) -> PixelClassifier:
        """The classifier alone, from pixels to logits."""
        # By position where it can be: some modules (torch.export's, DataParallel) do not know the parameter's name.
        return pixel_classifier(self.classifier, self.preprocessing, 0 if self.position == 0 else self.input)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            check_exportable(self.refusal)
        pixels = self.pixels(args, kwargs)
        output, score, refused = self.answer(args, kwargs, pixels, self._draw(pixels))
        extras = (score,) if self.score else ()
        if self.refusal.on_reject == "flag":
            extras = (*extras, refused)
        return (output, *extras) if extras else output

    def answer(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], pixels: Tensor, noise: Tensor | None
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """The classifier's output, the scores (N,) and which images are refused, bool (N,), for given noise.

        Parameters
        ----------
        args, kwargs
            The classifier's arguments.
        pixels
            What :meth:`pixels` makes of them.
        noise
            The purifier's ``draw()``; None for its mean.

        Returns
        -------
        tuple
            Scores and refusal are None unless the guard needs them.
        """
        purified, score = self._purify(pixels, noise)
        images = self.preprocessing.to_classifier(purified).to(self._image(args, kwargs).dtype)
        if self.input in kwargs:
            kwargs = {**kwargs, self.input: images}
        else:
            assert self.position is not None
            args = (*args[: self.position], images, *args[self.position + 1 :])
        refused = None
        if score is not None and self.refusal.threshold is not None:
            refused = self.refusal.of(score)
            self.refusal.check(score, refused)
        output = self.classifier(*args, **kwargs)
        if self.refusal.replaces:
            assert refused is not None
            output = self.refusal.replace(output, refused, self.purifier, pixels)
        return output, score, refused

    def _image(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        found = kwargs.get(self.input)
        if found is None and self.position is not None and self.position < len(args):
            found = args[self.position]
        if not isinstance(found, Tensor):
            got = "nothing" if found is None else type(found).__name__
            raise PixelError(f"{self.input}: expected the image as a tensor, got {got}; say which argument with input=")
        return found

    def pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The image among the classifier's arguments as the purifier takes it, (N, C, H, W) in [0, 1].

        Raises
        ------
        PixelError
            It is no image, or has an impossible shape, type or range.
        """
        image = self._image(args, kwargs)
        wanted = self.preprocessing.dtype
        if (wanted == "uint8") != (image.dtype == torch.uint8) or not (
            image.dtype == torch.uint8 or image.dtype.is_floating_point
        ):
            raise PixelError(f"{self.input}: expected {wanted} images, got {image.dtype}; see preprocessing=")
        shape = getattr(self.purifier.config, "image_shape", None)
        check_shape(_as_nchw(image, self.preprocessing), name=self.input, shape=shape)
        raw = self.preprocessing.to_pixels(image)
        if self.check and not torch.compiler.is_exporting():
            check_scale(image, self.preprocessing, name=self.input)
            check_range(raw, name=self.input)
        return into_range(raw).to(dtype_of(self.purifier))

    def _purify(self, pixels: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        name, score = type(self.purifier).__name__, None
        if self.score or self.refusal.active:
            purified, score = self.purifier.purify_and_score(pixels, noise)
            if score.shape != pixels.shape[:1]:
                raise PluginError(f"the purifier must give scores ({len(pixels)},), it gave {tuple(score.shape)}", name)
        else:
            purified = self.purifier.purify(pixels, noise)
        if purified.shape != pixels.shape:
            raise PluginError(
                f"the purifier must give images {tuple(pixels.shape)}, it gave {tuple(purified.shape)}", name
            )
        return purified, score

    def _draw(self, pixels: Tensor) -> Tensor | None:
        if torch.compiler.is_exporting():
            return None
        # With a seed every image has the same stream, so that its result does not depend on its place.
        places = range(len(pixels)) if self.seed is None else [0] * len(pixels)
        return self.purifier.draw(pixels, SampleGenerator(self.seed, places))

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            return inspect.signature(self.classifier.forward)
        return super().__getattr__(name)


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
        ``purifier_score`` from a session (and ``purifier_refused``, if the purifier is calibrated).
    on_reject
        What to do with images that score above the purifier's threshold, or NaN; ``purifier calibrate`` finds the
        threshold. ``ignore``: nothing. ``flag``: also return which they are, bool (N,): ``(output, refused)`` or
        ``(output, score, refused)``, and a last output ``purifier_refused`` from a session. ``abstain``: their logits
        become NaN, or certain of one class. ``raise``: a :class:`~purifier.errors.RefusedError` for the batch.
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


def _as_nchw(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    return image.permute(0, 3, 1, 2) if preprocessing.layout == "NHWC" and image.ndim == 4 else image
