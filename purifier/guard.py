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
from .pixels import Preprocessing, check_range, check_scale, check_shape, read_preprocessing
from .seeding import SampleGenerator
from .session import GuardedSession as GuardedSession


class GuardedModule(nn.Module):
    """A torch classifier behind a purifier; made by :func:`guard`.

    ``forward`` has the classifier's own signature and return value. The image is purified, whether it comes by
    position or by keyword; every other argument is handed on as it came. The purifier stays in evaluation mode.
    With ``score=True`` the result is ``(output, purifier_score)``, the score (N,).
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing,
        input: int | str = 0,
        score: bool = False,
        seed: int | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.classifier, self.purifier = classifier, purifier.eval()
        self.preprocessing, self.score, self.seed, self.check = preprocessing, score, seed, check
        self.position, self.input = _find_input(classifier, input)
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
        image = self._image(args, kwargs)
        purified, pixels = self._purify(image)
        if self.input in kwargs:
            kwargs = {**kwargs, self.input: purified}
        else:
            assert self.position is not None
            args = (*args[: self.position], purified, *args[self.position + 1 :])
        output = self.classifier(*args, **kwargs)
        return (output, self.purifier.score(pixels)) if self.score else output

    def _image(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        found = kwargs.get(self.input)
        if found is None and self.position is not None and self.position < len(args):
            found = args[self.position]
        if not isinstance(found, Tensor):
            got = "nothing" if found is None else type(found).__name__
            raise PixelError(f"{self.input}: expected the image as a tensor, got {got}; say which argument with input=")
        return found

    def _purify(self, image: Tensor) -> tuple[Tensor, Tensor]:
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
        pixels = raw.clamp(0, 1).to(dtype_of(self.purifier))
        purified = self.purifier.purify(pixels, self._draw(pixels))
        if purified.shape != pixels.shape:
            raise PluginError(
                f"the purifier must give images {tuple(pixels.shape)}, it gave {tuple(purified.shape)}",
                type(self.purifier).__name__,
            )
        return self.preprocessing.to_classifier(purified).to(image.dtype), pixels

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
    **options: Any,
) -> Guard:
    """Put a purifier in front of a classifier.

    Parameters
    ----------
    model
        A torch module or ONNX ``ModelProto``, or a MODEL spec: ``file.onnx``, ``file.pt2``,
        ``package.module:factory``, ``demo``.
    purifier
        A :class:`Purifier`, or a PURIFIER spec: ``file.safetensors``, ``NAME``, ``NAME:key=value,...``, ``demo``.
    preprocessing
        How the classifier wants its images: a :class:`Preprocessing` or torchvision's ``weights.transforms()``.
        Without it a torch classifier takes pixels (float, NCHW, [0, 1]), and an ONNX classifier what its input's
        type and shape say (uint8 means 0-255, channels last means NHWC).
    input
        The image's position among the arguments, or its parameter name; the first if not given.
    score
        Also return how unusual each image is: ``(output, score)`` from a module, and a last output
        ``purifier_score`` from a session.
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
        return GuardedSession(chosen, loaded, preprocessing=wanted, input=input, score=score, **options)
    if not isinstance(purifier, Purifier):
        weight = next(chosen.parameters(), None)
        loaded = loaded if weight is None else loaded.to(weight.device)
    return GuardedModule(
        chosen,
        loaded,
        preprocessing=read_preprocessing(preprocessing),
        input=0 if input is None else input,
        score=score,
        **options,
    )


def _find_input(classifier: nn.Module, input: int | str) -> tuple[int | None, str]:
    """The image's position (None if keyword only) and parameter name in the classifier's forward."""
    try:
        parameters = list(inspect.signature(classifier.forward).parameters.values())
    except ValueError:  # a traced module does not tell
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


def _as_nchw(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    return image.permute(0, 3, 1, 2) if preprocessing.layout == "NHWC" and image.ndim == 4 else image
