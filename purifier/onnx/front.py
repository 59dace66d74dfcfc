"""A purifier as an ONNX graph in front of a classifier."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..answering import answer, draw, purifier_input
from ..contracts.purifier import Classifying, Purifier
from ..data.pixels import Preprocessing
from ..errors import ConfigError, PluginError
from ..foreign_code import explained
from ..output import LOGITS, Output
from ..rejection.policy import Rejection
from ..seeding import SampleGenerator
from .image_shape import agreed_shape, places_of
from .limits import MAX_ELEMENTS
from .names import CLASSES, NOISE, OPSET, PURIFIED, REJECTED, SCORE
from .torch_export import export_module, innermost_cause


class PurifierFront(nn.Module):
    """Purifies a classifier's images in the classifier's format, and computes what else the guard needs.

    ``outputs`` names the results, in order: ``purified``; ``purifier_score``, float32 (N,); ``purifier_rejected``,
    bool (N,); ``purifier_classes``, for images to be reclassified, the purifier's own answers of the
    kind of ``output``, (N, K), or (N, 1) if binary.
    """

    def __init__(
        self,
        purifier: Purifier,
        preprocessing: Preprocessing,
        score: bool = False,
        rejection: Rejection | None = None,
        output: Output = LOGITS,
    ) -> None:
        super().__init__()
        self.purifier, self.preprocessing, self.rejection = purifier, preprocessing, rejection or Rejection()
        self.output = output
        requested = {
            PURIFIED: True,
            SCORE: score or self.rejection.on_reject == "raise",
            REJECTED: self.rejection.active or (score and self.rejection.threshold is not None),
            CLASSES: self.rejection.on_reject == "reclassify",
        }
        self.outputs = tuple(name for name, wanted in requested.items() if wanted)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels = self.pixels(image)
        noise = None if noise is None else noise.to(pixels.dtype)
        # The classifier's graph replaces answers; this one purifies and only marks rejected images.
        flagging = Rejection(threshold=self.rejection.threshold)
        found = answer(
            self.purifier,
            self.preprocessing.to_classifier,
            pixels,
            noise,
            rejection=flagging,
            scored=len(self.outputs) > 1,
        )
        values: dict[str, Tensor] = {PURIFIED: found.output}
        if found.score is not None:
            values[SCORE] = found.score.float()
        if found.rejected is not None:
            values[REJECTED] = found.rejected
        if CLASSES in self.outputs:
            values[CLASSES] = self.own_answer(pixels).float()
        return tuple(values[name] for name in self.outputs)

    def own_answer(self, pixels: Tensor) -> Tensor:
        """The purifier's own answers for pixels (N, C, H, W), of the classifier's kind."""
        assert isinstance(self.purifier, Classifying)
        return self.rejection.own_answer(self.purifier.classify(pixels), self.output)

    def pixels(self, image: Tensor) -> Tensor:
        """A classifier's images as pixels for the purifier."""
        return purifier_input(self.preprocessing.to_pixels(image), self.purifier)


def purifier_graph(
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    image_shape: tuple[int | None, ...],
    score: bool = False,
    rejection: Rejection | None = None,
    noise: bool = False,
    opset: int = OPSET,
    output: Output = LOGITS,
) -> ModelProto:
    """A purifier to put between a classifier and its images, as an ONNX model with a free batch size.

    Its input ``image`` and output ``purified`` are in the classifier's format; the other outputs are those of
    ``PurifierFront``. A random purifier purifies without noise, or with ``noise`` has the input
    ``purifier_noise``, float32 (N, ...), for the result of ``draw()``.

    Parameters
    ----------
    image_shape
        The classifier's images, (N, C, H, W) or (N, H, W, C) depending on its layout; None for a free size.
        Height and width are free unless they are given here or fixed by the purifier.

    Raises
    ------
    ConfigError
        The purifier is made for images of another shape, the number of channels is unknown, or ``noise`` is set and
        the purifier draws none; or it is to reclassify for a binary classifier, and does not have 2 classes.
    PluginError
        torch cannot export the purifier.
    """
    example, free = example_images(purifier, preprocessing, image_shape)
    front = PurifierFront(purifier, preprocessing, score, rejection, output)
    if CLASSES in front.outputs:
        front.own_answer(front.pixels(example))  # a wrong number of classes, seen before torch exports anything
    examples, places, names = [example], [free], ["image"]
    if noise:
        drawn = noise_for(purifier, front.pixels(example))
        examples.append(drawn)
        names.append(NOISE)
        # If the images' size is free, the noise's may be free too.
        places.append((0,) if len(free) == 1 else tuple(range(drawn.ndim)))
    name = type(purifier).__name__
    with explained(
        f"{name} cannot be exported to ONNX",
        partial(PluginError, name=name),
        "its purify and score must use operators that torch.onnx.export supports",
        catching=(torch.onnx.OnnxExporterError,),
        describe=innermost_cause,
    ):
        return export_module(front, examples, free=places, inputs=names, outputs=front.outputs, opset=opset)


def noise_for(purifier: Purifier, pixels: Tensor, seed: int = 0) -> Tensor:
    """One draw of a purifier in evaluation mode for pixels (N, C, H, W), as a graph's input: float32 (N, ...).

    Raises
    ------
    ConfigError
        The purifier draws no noise, or no floats.
    """
    drawn = draw_of(purifier, pixels, seed)
    if drawn is None:
        raise ConfigError(
            f"noise='input': {type(purifier).__name__} draws no noise, its result is always the same; leave noise out"
        )
    if not drawn.is_floating_point():
        raise ConfigError(f"noise='input': expected float noise, got {drawn.dtype} from {type(purifier).__name__}")
    return drawn.float()


def draw_of(purifier: Purifier, pixels: Tensor, seed: int = 0) -> Tensor | None:
    """One draw of a purifier in evaluation mode, (N, ...), or None; each image has its own stream."""
    quiet = copy.deepcopy(purifier).cpu().eval()
    return draw(quiet, pixels.cpu(), SampleGenerator(seed, range(len(pixels))))


def example_images(
    purifier: Purifier, preprocessing: Preprocessing, image_shape: tuple[int | None, ...], *, count: int = 2
) -> tuple[Tensor, tuple[int, ...]]:
    """Random images in the classifier's format, and which dimensions are free (dimension 0, the batch, always is).

    Raises
    ------
    ConfigError
        The purifier is made for images of another shape, the number of channels is unknown, or the images are
        too large.
    """
    order = places_of(preprocessing)
    agreed = agreed_shape(purifier, preprocessing, image_shape)
    channels, height, width = (agreed[place] for place in order[1:])
    if channels is None:
        channels = max(len(preprocessing.mean), len(preprocessing.std))
    if channels == 0:
        raise ConfigError(
            "the classifier does not declare how many channels its images have; give image_shape=(C, H, W) "
            "(--image-shape 3x224x224 on the command line), or preprocessing= with one mean per channel"
        )
    generator = torch.Generator().manual_seed(0)
    # Height and width differ, so the exporter does not treat them as the same size.
    sizes = (count, channels, height or 64, width or 96)
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ConfigError(
            f"a batch of images {sizes} (N, C, H, W) has {math.prod(sizes):.3g} values, the limit is "
            f"{MAX_ELEMENTS:.3g}; give smaller images or batches"
        )
    pixels = torch.rand(sizes, generator=generator)
    free = [0, *(place for place, size in ((2, height), (3, width)) if size is None)]
    return preprocessing.to_classifier(pixels), tuple(order[place] for place in free)
