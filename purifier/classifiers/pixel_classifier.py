"""Any classifier, torch or ONNX, from pixels to logits."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..data.pixels import Preprocessing
from ..errors import ClassifierError, PurifierError
from ..foreign_code import Attempt, explained, is_exception
from ..onnx.feeding import NOTHING, Feed, check_fed
from ..onnx.image_input import image_input
from ..onnx.labels import Labels, as_tensors
from ..onnx.names import REJECTED, SCORE
from ..onnx.runtime import open_session
from ..output import LOGITS, Output, check_tensors
from ..torch_tools.fingerprint import sha256_of
from .logits import one_row_per_image
from .white_box import Source, WhiteBox, compare, example_pixels


class PixelClassifier(nn.Module):
    """A classifier as attacks use it: logits (N, K) from pixels (N, C, H, W)."""

    differentiable: bool
    file: str | None = None
    """The ONNX file that it is, if known; errors name it."""
    labels_only = False
    """Whether its logits only say which class it chooses."""
    surrogates: tuple[str, ...] = ()
    """Its operations that round, whose gradient is that of the identity; it then has no exact gradient."""
    queries_only = ""
    """Why it has no gradients."""

    def __init__(self, preprocessing: Preprocessing, output: Output = LOGITS) -> None:
        super().__init__()
        self.preprocessing, self.output = preprocessing, output

    def describe(self) -> str:
        """The classifier in a few words, for reports and errors."""
        raise NotImplementedError

    def sha256(self) -> str:
        """A hash of its weights and buffers, or of its graph, in hexadecimal."""
        return sha256_of(self)

    def count_parameters(self) -> int:
        """The number of its weights."""
        return sum(weight.numel() for weight in self.parameters())


class TorchPixelClassifier(PixelClassifier):
    """A torch module behind its preprocessing."""

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, input: int | str = 0, output: Output = LOGITS
    ) -> None:
        super().__init__(preprocessing, output)
        self.module, self.input = module, input
        self.differentiable = preprocessing.dtype != "uint8"
        self.queries_only = "" if self.differentiable else "torch computes no gradient of uint8 images"

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.preprocessing.to_classifier(pixels)
        if images is pixels and pixels.is_leaf and pixels.requires_grad:
            images = pixels.clone()  # an in-place layer at the start may work on anything but a leaf
        with explained(
            f"{self.describe()} failed",
            partial(ClassifierError, path=""),
            "make it raise an error instead",
            passing=is_exception,
        ):
            output = self.module(**{self.input: images}) if isinstance(self.input, str) else self.module(images)
        check_tensors(output, self.describe())
        return one_row_per_image(self.output.logits(output), pixels)

    def describe(self) -> str:
        return f"torch {type(self.module).__name__}{self.output.describe()}"


class Verdict(NamedTuple):
    """What an ONNX model says about N images."""

    logits: Tensor
    """(N, K)."""
    score: Tensor | None
    """Its own ``purifier_score``, (N,); None if it has none."""
    rejected: Tensor | None
    """Which images it marks as rejected, bool (N,); None if it marks none."""


class OnnxPixelClassifier(PixelClassifier):
    """An ONNX model behind its preprocessing, run by ONNX Runtime; torch computes its gradients.

    Whether it has gradients is found out when somebody first asks: torch then takes over its graph, and is compared
    with ONNX Runtime.
    """

    def __init__(
        self,
        model: ModelProto,
        preprocessing: Preprocessing,
        input: int | str | None = None,
        output: Output = LOGITS,
        file: str | None = None,
        feed: Feed = NOTHING,
    ) -> None:
        super().__init__(preprocessing, output)
        self.file = file
        found = image_input(model, input)
        self.name, self.fixed_batch = found.name, found.shape[0]
        content = model.SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(content).digest()
        self._weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        self.session = open_session(content)
        self.feed = feed
        self._source = Source(model)
        self.white_box: WhiteBox | None = None
        self.labels = Labels(model, output) if output.labels else None
        self.labels_only = self.labels is not None
        self.answer = output if self.labels is None else self.labels.as_logits
        check_fed(self.session.get_inputs(), self.name, feed)
        self._names = [output.name for output in self.session.get_outputs()]
        facts = self.session.get_modelmeta().custom_metadata_map
        self._abstains = facts.get("purifier.on_reject") == "abstain" and "purifier.abstain" not in facts
        self.threshold = float(facts["purifier.threshold"]) if "purifier.threshold" in facts else None

    def forward(self, pixels: Tensor) -> Tensor:
        wanted = pixels.dtype == torch.float64 or (pixels.requires_grad and torch.is_grad_enabled())
        if wanted and self.differentiable:
            assert self.white_box is not None
            return one_row_per_image(self.answer.to_logits(self.white_box(pixels)), pixels)
        return self.verdict(pixels).logits

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # found out once
        """Whether torch computes the same answers, with gradients that agree with ONNX Runtime."""
        model = self._source.taken()
        if model is not None:
            with Attempt((PurifierError,)) as attempt:
                self.white_box = self._compared(model)
            if attempt.error is not None:
                self.queries_only = str(attempt.error).partition(";")[0]
        return self.white_box is not None

    @property
    def surrogates(self) -> tuple[str, ...]:  # type: ignore[override]
        """See the base class."""
        return self.white_box.surrogates if self.differentiable and self.white_box is not None else ()

    def _compared(self, model: ModelProto) -> WhiteBox:
        if self.labels_only:
            raise ClassifierError("it answers with a class and nothing else", "")
        found = image_input(model, self.name)
        pixels = example_pixels(found.shape, self.preprocessing)
        fixed = self.fixed_batch if isinstance(self.fixed_batch, int) else None

        def by_runtime(pixels: Tensor) -> dict[str, Any]:
            parts = [self._run(part) for part in self._parts(self.preprocessing.to_classifier(pixels).numpy())]
            return {
                name: torch.cat([part[name] for part in parts])
                for name, one in parts[0].items()
                if isinstance(one, Tensor)
            }

        with explained("it fails on random images", partial(ClassifierError, path="")):
            outputs = by_runtime(pixels)
            answer = self.answer.find(outputs)
        name = next(name for name, value in outputs.items() if value is answer)
        white_box = WhiteBox(model, name, self.name, self.preprocessing, self.feed, fixed, self.describe())
        with explained("its gradient cannot be computed", partial(ClassifierError, path="")):
            compare(white_box.eval(), lambda images: by_runtime(images)[name], pixels)
        return white_box.requires_grad_(False)

    @property
    def marks(self) -> bool:
        """Whether the model is an exported guard that marks images as rejected."""
        return REJECTED in self._names or self._abstains

    @property
    def scores(self) -> bool:
        """Whether the model is an exported guard that gives its score."""
        return SCORE in self._names

    def verdict(self, pixels: Tensor) -> Verdict:
        """The model's logits for pixels (N, C, H, W), and if it is an exported guard, its score and rejections."""
        images = self.preprocessing.to_classifier(pixels.detach()).cpu().numpy()
        parts = [self._run(part) for part in self._parts(images)]
        own = [{name: value for name, value in part.items() if name not in (SCORE, REJECTED)} for part in parts]
        answers = torch.cat([self.answer.find(part) for part in own])
        logits = one_row_per_image(self.answer.to_logits(answers), pixels).to(pixels.device, torch.float32)
        score, rejected = (
            torch.cat([torch.as_tensor(part[name]) for part in parts]).to(pixels.device) if name in parts[0] else None
            for name in (SCORE, REJECTED)
        )
        if rejected is None and self._abstains:
            rejected = answers.reshape(len(answers), -1).isnan().all(1).to(pixels.device)
        return Verdict(logits, score, rejected)

    def sha256(self) -> str:
        return self.digest.hex()

    def count_parameters(self) -> int:
        return int(self._weights)

    def describe(self) -> str:
        name = "an ONNX model" if self.file is None else f"the ONNX model {self.file}"
        return f"{name} on {self.session.get_providers()[0]}{self.output.describe()}"

    def _run(self, images: np.ndarray[Any, Any]) -> dict[str, Any]:
        """All outputs by name, in order; floats as tensors, with one row per image."""
        padding = self.fixed_batch - len(images) if isinstance(self.fixed_batch, int) else 0
        padded = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)]) if padding else images
        outputs = self.session.run(None, {**self.feed.of(len(padded)), self.name: padded})
        found = dict(zip(self._names, outputs, strict=True))
        return as_tensors(found, self.labels, len(images) if padding else None)

    def _parts(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        size = self.fixed_batch if isinstance(self.fixed_batch, int) else max(len(images), 1)
        return [images[start : start + size] for start in range(0, max(len(images), 1), size)]


def pixel_classifier(
    model: nn.Module | ModelProto,
    preprocessing: Preprocessing,
    input: int | str | None = None,
    output: Output = LOGITS,
    file: str | None = None,
    feed: Feed = NOTHING,
) -> PixelClassifier:
    """Any classifier in pixel space; ``input`` is the image's position or parameter name, ``file`` an ONNX model's."""
    if isinstance(model, ModelProto):
        return OnnxPixelClassifier(model, preprocessing, input, output, file, feed)
    return TorchPixelClassifier(model, preprocessing, 0 if input is None else input, output)
