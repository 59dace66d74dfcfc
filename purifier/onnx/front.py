"""A purifier as an ONNX graph that stands in front of a classifier."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..answering import answer, to_pixels
from ..contracts.purifier import Classifying, Purifier, image_shape_of
from ..data.pixels import Preprocessing
from ..errors import ConfigError, PluginError
from ..foreign_code import explained
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from .names import CLASSES, NOISE, OPSET, PURIFIED, REJECTED, SCORE
from .reader import MAX_ELEMENTS
from .torch_export import export_module, innermost_cause


class PurifierFront(nn.Module):
    """A classifier's images -> the same images purified, in the same format, and what else the guard needs.

    Its results are named by ``outputs``, in order: ``purified``; ``purifier_score``, float32 (N,);
    ``purifier_rejected``, bool (N,); ``purifier_classes``, log-probabilities (N, K) for images to be reclassified.
    """

    def __init__(
        self, purifier: Purifier, preprocessing: Preprocessing, score: bool = False, rejection: Rejection | None = None
    ) -> None:
        super().__init__()
        self.purifier, self.preprocessing, self.rejection = purifier, preprocessing, rejection or Rejection()
        asked = {
            PURIFIED: True,
            SCORE: score or self.rejection.on_reject == "raise",
            REJECTED: self.rejection.active or (score and self.rejection.threshold is not None),
            CLASSES: self.rejection.on_reject == "reclassify",
        }
        self.outputs = tuple(name for name, wanted in asked.items() if wanted)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels = self.pixels(image)
        noise = None if noise is None else noise.to(pixels.dtype)
        # The graph behind this one classifies and replaces; here the images are purified and flagged.
        flagging = Rejection(threshold=self.rejection.threshold)
        given = answer(
            self.purifier,
            self.preprocessing.to_classifier,
            pixels,
            noise,
            rejection=flagging,
            scored=len(self.outputs) > 1,
        )
        made: dict[str, Tensor] = {PURIFIED: given.output}
        if given.score is not None:
            made[SCORE] = given.score.float()
        if given.rejected is not None:
            made[REJECTED] = given.rejected
        if CLASSES in self.outputs:
            assert isinstance(self.purifier, Classifying)
            made[CLASSES] = self.purifier.classify(pixels).float()
        return tuple(made[name] for name in self.outputs)

    def pixels(self, image: Tensor) -> Tensor:
        """A classifier's images as the purifier takes them."""
        return to_pixels(image, self.preprocessing, self.purifier)


def purifier_graph(
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    image_shape: tuple[int | None, ...],
    score: bool = False,
    rejection: Rejection | None = None,
    noise: bool = False,
    opset: int = OPSET,
) -> ModelProto:
    """A purifier between a classifier's images and the classifier, as an ONNX model with a free batch size.

    Its input ``image`` and output ``purified`` are in the classifier's format; its further outputs are those of
    :class:`PurifierFront`. A random purifier gives its mean, or with ``noise`` takes ``purifier_noise``, the float32
    (N, ...) of its ``draw()``.

    Parameters
    ----------
    image_shape
        The classifier's images, (N, C, H, W) or (N, H, W, C) as its layout says; None where free. Height and
        width stay free unless given here or fixed by the purifier.

    Raises
    ------
    ConfigError
        The purifier is made for images of another shape, the number of channels is not known, or noise is wanted of
        a purifier that draws none.
    PluginError
        torch cannot export the purifier.
    """
    example, free = example_images(purifier, preprocessing, image_shape)
    front = PurifierFront(purifier, preprocessing, score, rejection)
    examples, places, names = [example], [free], ["image"]
    if noise:
        drawn = noise_for(purifier, front.pixels(example))
        examples.append(drawn)
        names.append(NOISE)
        # Where the images' size is free, so may be the noise's.
        places.append((0,) if len(free) == 1 else tuple(range(drawn.ndim)))
    name = type(purifier).__name__
    with explained(
        f"{name} cannot be exported to ONNX",
        partial(PluginError, name=name),
        "its purify and score must be made of operators that torch.onnx.export knows",
        catching=(torch.onnx.OnnxExporterError,),
        describe=innermost_cause,
    ):
        return export_module(front, examples, free=places, inputs=names, outputs=front.outputs, opset=opset)


def noise_for(purifier: Purifier, pixels: Tensor, seed: int = 0) -> Tensor:
    """One draw of a purifier in evaluation mode for pixels (N, C, H, W), as a graph takes it: float32 (N, ...).

    Raises
    ------
    ConfigError
        It draws nothing, or no floats.
    """
    drawn = draw_of(purifier, pixels, seed)
    if drawn is None:
        raise ConfigError(
            f"noise='input': {type(purifier).__name__} draws nothing, its result is always the same; leave noise out"
        )
    if not drawn.is_floating_point():
        raise ConfigError(f"noise='input': {type(purifier).__name__} draws {drawn.dtype}; only floats can be an input")
    return drawn.float()


def draw_of(purifier: Purifier, pixels: Tensor, seed: int = 0) -> Tensor | None:
    """One draw of a purifier in evaluation mode, (N, ...), or None; each image has a stream of its own."""
    quiet = copy.deepcopy(purifier).cpu().eval()
    return quiet.draw(pixels.cpu(), SampleGenerator(seed, range(len(pixels))))


def example_images(
    purifier: Purifier, preprocessing: Preprocessing, image_shape: tuple[int | None, ...], *, count: int = 2
) -> tuple[Tensor, tuple[int, ...]]:
    """Random images in the classifier's format, and which dimensions are free (0, the batch, always).

    Raises
    ------
    ConfigError
        The purifier is made for images of another shape, the number of channels is not known, or the images are
        too large.
    """
    nhwc = preprocessing.layout == "NHWC"
    order = (0, 3, 1, 2) if nhwc else (0, 1, 2, 3)
    declared = tuple(image_shape[place] for place in order)[1:]
    fixed = image_shape_of(purifier) or (None, None, None)
    for mine, theirs in zip(fixed, declared, strict=True):
        if mine is not None and theirs is not None and mine != theirs:
            raise ConfigError(
                f"{type(purifier).__name__} purifies images {tuple(fixed)}, the classifier takes "
                f"{tuple('any' if size is None else size for size in declared)} (C, H, W), {preprocessing.layout}; "
                "train a purifier for these images, or say the layout with preprocessing="
            )
    channels, height, width = (mine or theirs for mine, theirs in zip(fixed, declared, strict=True))
    if channels is None:
        channels = max(len(preprocessing.mean), len(preprocessing.std))
    if channels == 0:
        raise ConfigError(
            "the classifier does not say how many channels its images have; give preprocessing= with one mean a "
            "channel, or fix the input's shape (python -m onnxruntime.tools.make_dynamic_shape_fixed)"
        )
    generator = torch.Generator().manual_seed(0)
    # Different sizes for height and width, so that the exporter does not take them for one.
    sizes = (count, channels, height or 64, width or 96)
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ConfigError(
            f"a batch of images {sizes} (N, C, H, W) has {math.prod(sizes):.3g} values, the limit is "
            f"{MAX_ELEMENTS:.3g}; give smaller images or batches"
        )
    pixels = torch.rand(sizes, generator=generator)
    free = [0, *(place for place, size in ((2, height), (3, width)) if size is None)]
    return preprocessing.to_classifier(pixels), tuple(order.index(place) for place in free)
