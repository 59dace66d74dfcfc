"""A purifier, or any torch module, as an ONNX graph without traces of the machine that made it."""

from __future__ import annotations

import copy
import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    InlinePass,
    RemoveUnusedNodesPass,
)
from torch import Tensor, nn

from .errors import ConfigError, PluginError
from .interfaces import Classifying, Purifier, dtype_of
from .onnx_file import MAX_ELEMENTS
from .pixels import Preprocessing
from .refusal import Refusal
from .seeding import SampleGenerator

OPSET = 18
IR_VERSION = 10
"""What ONNX Runtime of the last years reads; onnx's own default is newer than ONNX Runtime 1.31 accepts."""
SCORE, REFUSED, CLASSES = "purifier_score", "purifier_refused", "purifier_classes"
NOISE, PURIFIED = "purifier_noise", "purified"
_EXPORTING = threading.Lock()
"""Warning filters, standard error and loggers are the whole process's: two exports must not put back each other's."""


class PurifierFront(nn.Module):
    """A classifier's images -> the same images purified, in the same format, and what else the guard needs.

    Its results are named by ``outputs``, in order: ``purified``; ``purifier_score``, float32 (N,);
    ``purifier_refused``, bool (N,); ``purifier_classes``, log-probabilities (N, K) for images to be reclassified.
    """

    def __init__(
        self, purifier: Purifier, preprocessing: Preprocessing, score: bool = False, refusal: Refusal | None = None
    ) -> None:
        super().__init__()
        self.purifier, self.preprocessing, self.refusal = purifier, preprocessing, refusal or Refusal()
        asked = {
            PURIFIED: True,
            SCORE: score or self.refusal.on_reject == "raise",
            REFUSED: self.refusal.active or (score and self.refusal.threshold is not None),
            CLASSES: self.refusal.on_reject == "reclassify",
        }
        self.outputs = tuple(name for name, wanted in asked.items() if wanted)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        pixels = self.pixels(image)
        noise = None if noise is None else noise.to(pixels.dtype)
        if len(self.outputs) == 1:
            return (self.preprocessing.to_classifier(self.purifier.purify(pixels, noise)),)
        purified, score = self.purifier.purify_and_score(pixels, noise)
        made = {PURIFIED: self.preprocessing.to_classifier(purified), SCORE: score.float()}
        if REFUSED in self.outputs:
            made[REFUSED] = self.refusal.of(score)
        if CLASSES in self.outputs:
            assert isinstance(self.purifier, Classifying)
            made[CLASSES] = self.purifier.classify(pixels).float()
        return tuple(made[name] for name in self.outputs)

    def pixels(self, image: Tensor) -> Tensor:
        """A classifier's images as the purifier takes them."""
        return self.preprocessing.to_pixels(image).clamp(0, 1).to(dtype_of(self.purifier))


def purifier_graph(
    purifier: Purifier,
    preprocessing: Preprocessing,
    *,
    image_shape: tuple[int | None, ...],
    score: bool = False,
    refusal: Refusal | None = None,
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
    front = PurifierFront(purifier, preprocessing, score, refusal)
    examples, places, names = [example], [free], ["image"]
    if noise:
        drawn = noise_for(purifier, front.pixels(example))
        examples.append(drawn)
        names.append(NOISE)
        # Where the images' size is free, so may be the noise's.
        places.append((0,) if len(free) == 1 else tuple(range(drawn.ndim)))
    try:
        return export_module(front, examples, free=places, inputs=names, outputs=front.outputs, opset=opset)
    except torch.onnx.OnnxExporterError as error:
        raise PluginError(
            f"{type(purifier).__name__} cannot be exported to ONNX: {cause_of(error)}; its purify and score must be "
            "made of operators that torch.onnx.export knows",
            type(purifier).__name__,
        ) from error


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
    fixed: Sequence[int | None] = getattr(purifier.config, "image_shape", None) or (None, None, None)
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


def export_module(
    module: nn.Module,
    examples: Sequence[Tensor],
    *,
    free: Sequence[Sequence[int]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> ModelProto:
    """``torch.onnx.export`` of a module into one self-contained model without source paths.

    A copy in evaluation mode on the CPU is exported; the module is not touched. The first dimension of the inputs, if
    free, is called ``batch``.

    Parameters
    ----------
    examples
        An example of each input.
    free
        Of each input the dimensions that may have other sizes; torch fixes those that the module does not leave open,
        but for the first.
    """
    dim = torch.export.Dim
    sizes = tuple(
        {place: dim.AUTO if place and number else dim.DYNAMIC for place in places} for number, places in enumerate(free)
    )
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            copy.deepcopy(module).cpu().eval(),
            tuple(examples),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=sizes,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    InlinePass()(model)
    # Unrolled steps have the same weights each. The hashing variant of the pass fails on transposed ones.
    DeduplicateInitializersPass(size_limit=MAX_ELEMENTS)(model)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.clear()
    model.ir_version = IR_VERSION
    _name_batch(model)
    return ir.to_proto(without_sources(model))


def _name_batch(model: ir.Model) -> None:
    """Call the inputs' free first dimension ``batch``, wherever torch's own symbol for it (``s40``) stands."""
    firsts = [value.shape[0] for value in model.graph.inputs if value.shape]
    symbols = {first.value for first in firsts if isinstance(first, ir.SymbolicDim) and first.value}
    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(symbols))) + r")\b")
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            for place, size in enumerate(value.shape or ()):
                if isinstance(size, ir.SymbolicDim) and size.value and value.shape is not None:
                    value.shape[place] = ir.SymbolicDim(pattern.sub("batch", size.value))


def without_sources(model: ir.Model) -> ir.Model:
    """Remove, in place, what exporters note on nodes and values: source lines, stack traces, paths."""
    ClearMetadataAndDocStringPass()(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
            value.doc_string = None
            value.metadata_props.clear()
    return model


def cause_of(error: BaseException) -> str:
    """What went wrong, from an exporter's long message: the start of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's own notices from callers who can do nothing about them; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    with _EXPORTING:
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(max(logger.level, logging.ERROR))
            # A failed export prints the graphs it tried to standard error.
            with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
                # torch and its exporter use names that they have deprecated themselves.
                for kind in (DeprecationWarning, FutureWarning):
                    warnings.filterwarnings("ignore", category=kind, module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
