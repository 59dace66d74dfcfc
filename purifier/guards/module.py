"""A torch classifier behind a purifier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import answering
from ..answering import Answer
from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..contracts.purifier import Purifier, image_shape_of
from ..data.bad_pixels import bad_images, blackened, check_range
from ..data.pixels import DTYPES, Preprocessing, check_scale, check_shape
from ..data.reading import tracing
from ..errors import PixelError
from ..output import LOGITS, Output
from ..rejection.policy import check_exportable, rejection_of
from ..seeding import SampleGenerator
from ..vocabulary import OnBadPixels, OnReject
from .attributes import attribute_of
from .compiled_check import check_in_graph
from .hub_folder import Pretrained
from .signature import class_like, find_input
from .trial import try_replacing


class GuardedModule(Pretrained, nn.Module):
    """A torch classifier behind a purifier; made by ``guard``.

    ``forward`` has the classifier's own signature and return value. The image is purified, whether it is passed by
    position or by keyword; all other arguments are passed on unchanged. With ``score=True`` the result is
    ``(output, score)``, the score (N,); with ``on_reject="flag"`` it is ``(output, rejected)``, rejected bool (N,);
    with both, ``(output, score, rejected)``.

    The purifier stays in evaluation mode, and its weights do not require gradients unless it was in training mode when
    it was guarded. Attributes that the guard does not have are the classifier's. The classifier's methods call the
    guard where they call themselves; its layers can be read but not called, because that would skip the purifier, see
    ``UnguardedError``. ``classifier`` is the unguarded classifier itself.
    """

    plain: ClassVar[type[GuardedModule] | None] = None
    """The class that this one was made from by ``class_like``."""

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing,
        input: int | str = 0,
        output: Output = LOGITS,
        score: bool = False,
        on_reject: OnReject = "ignore",
        abstain: int | None = None,
        seed: int | None = None,
        check: bool = True,
        on_bad_pixels: OnBadPixels = "raise",
    ) -> None:
        super().__init__()
        self.rejection = rejection_of(purifier, on_reject, abstain, on_bad_pixels)
        if not purifier.training:
            purifier.requires_grad_(False)
        self.classifier, self.purifier = classifier, purifier.eval()
        self.preprocessing, self.score, self.seed, self.check = preprocessing, score, seed, check
        self.position, self.input = find_input(classifier, input)
        self.output = output
        self.training = getattr(classifier, "training", False)  # a frozen script has no mode
        place = 0 if self.position == 0 else self.input
        try_replacing(classifier, self.purifier, preprocessing, place, self.rejection, output)
        self.__class__ = class_like(type(self), classifier)

    def train(self, mode: bool = True) -> GuardedModule:
        """Switch the classifier; the purifier filters the same way in both modes."""
        self.training = mode
        try:
            self.classifier.train(mode)
        except NotImplementedError:
            # A torch.export module has its mode baked in: it can be evaluated, but not trained.
            if mode:
                raise
        return self

    def pixel_classifier(self) -> PixelClassifier:
        """The classifier alone, from pixels to logits."""
        # By position if possible: some modules (torch.export's, DataParallel) do not know the parameter's name.
        place = 0 if self.position == 0 else self.input
        return pixel_classifier(self.classifier, self.preprocessing, place, self.output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if _traced():
            check_exportable(self.rejection)
        pixels, bad = self.read(args, kwargs)
        answer = self.answer(args, kwargs, pixels, self._draw(pixels), bad)
        extras = (answer.score,) if self.score else ()
        if self.rejection.on_reject == "flag":
            extras = (*extras, answer.rejected)
        return (answer.output, *extras) if extras else answer.output

    def answer(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        pixels: Tensor,
        noise: Tensor | None,
        bad: Tensor | None = None,
    ) -> Answer:
        """The guard's answer for the given noise; score and rejection are None unless the guard needs them.

        Parameters
        ----------
        args, kwargs
            The classifier's arguments.
        pixels
            The result of ``pixels`` for these arguments.
        noise
            The result of the purifier's ``draw()``; None for its mean.
        bad
            Which images are bad, as ``read`` found; None if none are.
        """

        def classify(purified: Tensor) -> Any:
            given = self._image(args, kwargs)
            images = _in_format_of(given, self.preprocessing.to_classifier(purified, given.dtype))
            if self.input in kwargs:
                return self.classifier(*args, **{**kwargs, self.input: images})
            assert self.position is not None
            return self.classifier(*args[: self.position], images, *args[self.position + 1 :], **kwargs)

        return answering.answer(
            self.purifier,
            classify,
            pixels,
            noise,
            rejection=self.rejection,
            scored=self.score,
            output=self.output,
            bad=bad,
        )

    def _image(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        found = kwargs.get(self.input)
        if found is None and self.position is not None and self.position < len(args):
            found = args[self.position]
        if not isinstance(found, Tensor):
            got = "nothing" if found is None else type(found).__name__
            raise PixelError(f"{self.input}: expected an image tensor, got {got}; name the image argument with input=")
        return found

    def pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The image among the classifier's arguments, as the purifier takes it; bad images are black, see ``read``."""
        return self.read(args, kwargs)[0]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The image among the classifier's arguments, as the purifier takes it, and which of its images are bad.

        Returns
        -------
        Tensor
            Pixels (N, C, H, W) in [0, 1]; bad images are black.
        Tensor or None
            Which images are bad, bool (N,). None if none are: their values were checked, or they are uint8.

        Raises
        ------
        PixelError
            It is not an image tensor, or its shape or dtype is wrong; or an image is bad, unless bad images are
            rejected, ``check`` is False, or values cannot be read.
        """
        image = self._image(args, kwargs)
        wanted = self.preprocessing.dtype
        if (wanted == "uint8") != (image.dtype == torch.uint8) or not (
            image.dtype == torch.uint8 or image.dtype.is_floating_point
        ):
            raise PixelError(
                f"{self.input}: expected {wanted} images, got {image.dtype}; convert them{_dtype_option(image.dtype)}"
            )
        shape = image_shape_of(self.purifier)
        check_shape(_as_nchw(image, self.preprocessing), name=self.input, shape=shape)
        precise = torch.float64 if image.dtype == torch.float64 else torch.float32
        pixels = self.preprocessing.to_pixels(image, precise)
        pixels, checked = self._checked(image, pixels)
        if checked or image.dtype == torch.uint8:
            return answering.purifier_input(pixels, self.purifier), None
        bad = bad_images(pixels, clamp=self.rejection.clamps)
        return answering.purifier_input(blackened(pixels, bad), self.purifier), bad

    def _checked(self, image: Tensor, pixels: Tensor) -> tuple[Tensor, bool]:
        """The pixels, and whether they are known to hold no bad image."""
        if not self.check or torch.compiler.is_exporting():
            return pixels, False
        rejects = self.rejection.on_bad_pixels == "reject"
        if torch.compiler.is_dynamo_compiling():
            pixels = check_in_graph(image, pixels, self.preprocessing, self.input, self.rejection.on_bad_pixels)
            return pixels, not rejects
        check_scale(image, self.preprocessing, name=self.input)
        return pixels, not rejects and check_range(pixels, name=self.input, clamp=self.rejection.clamps)

    def _draw(self, pixels: Tensor) -> Tensor | None:
        if _traced():
            return None
        # With a seed every image gets the same stream, so that its result does not depend on its position.
        positions = range(len(pixels)) if self.seed is None else [0] * len(pixels)
        return answering.draw(self.purifier, pixels, SampleGenerator(self.seed, positions))

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            return inspect.signature(self.forward)
        parts = self.__dict__.get("_modules", {})
        own = any(name in self.__dict__.get(kind, {}) for kind in ("_parameters", "_buffers", "_modules"))
        if own or name.startswith("__") or "classifier" not in parts:
            return super().__getattr__(name)
        return attribute_of(self, parts["classifier"], name)

    def _get_name(self) -> str:
        return "GuardedModule"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.plain or type(self),), self.__getstate__()  # type: ignore[no-untyped-call]  # object's

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self.__class__ = class_like(type(self), self.classifier)


def _blank(kind: type[GuardedModule]) -> GuardedModule:
    return kind.__new__(kind)


def _traced() -> bool:
    """Whether a graph is being made that other programs run: it draws no noise and raises no errors."""
    return torch.compiler.is_exporting() or tracing()


def _in_format_of(given: Tensor, images: Tensor) -> Tensor:
    """Images in the memory format of the given ones, which a model that was moved to channels-last expects."""
    last = torch.channels_last
    if given.ndim != 4 or given.is_contiguous() or not given.is_contiguous(memory_format=last):
        return images
    return images.contiguous(memory_format=last)


def _as_nchw(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    return image.permute(0, 3, 1, 2) if preprocessing.layout == "NHWC" and image.ndim == 4 else image


def _dtype_option(dtype: torch.dtype) -> str:
    """What a message adds for a classifier that takes images of this type."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        return ""
    options = f"scale=255, dtype={name!r}" if dtype == torch.uint8 else f"dtype={name!r}"
    return f", or if the classifier takes them, say so: preprocessing=purifier.Preprocessing({options})"
