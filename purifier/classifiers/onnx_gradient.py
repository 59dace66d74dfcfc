"""Gradients of an ONNX classifier: onnx-ad writes its adjoint, ONNX Runtime runs it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from ..data.pixels import Preprocessing
from ..errors import ConfigError
from ..foreign_code import explained
from ..onnx.image_input import image_input
from ..onnx.opset import opset_of, raise_opset
from ..onnx.runtime import open_session
from ..output import LOGITS, Output
from ..torch_tools.norms import norm_of, scale_like
from .pixel_classifier import OnnxPixelClassifier

CHUNK = 32
"""Images per batch; fixed, because an adjoint has fixed shapes."""
ADJOINT_OPSET = 13
"""Models of older opsets are converted to this one before they are differentiated."""
PREFIX = "adjoint_of_"
ADVICE = "give the torch module, or use a recipe that needs no gradients (denoise:attacks=square)"
STEP, MAX_ERROR = 1e-2, 0.05
"""L2 length, in pixel units, of the finite difference along the gradient, and the largest relative error allowed."""


class OnnxGradientClassifier(OnnxPixelClassifier):
    """An ONNX model behind its preprocessing, with gradients.

    The gradients come from its adjoint, another ONNX graph. The package onnx-ad writes it, and it is compared with
    finite differences before it is used.

    Raises
    ------
    ConfigError
        onnx-ad is not installed, cannot differentiate this model, or gives wrong gradients.
    """

    def __init__(
        self,
        model: ModelProto,
        preprocessing: Preprocessing,
        input: int | str | None = None,
        output: Output = LOGITS,
    ) -> None:
        super().__init__(model, preprocessing, input, output)
        if output.labels:
            raise ConfigError(f"gradients of an ONNX model need logits or probabilities, got labels; {ADVICE}")
        if preprocessing.dtype != "float32":
            raise ConfigError(
                f"gradients of an ONNX model need float32 images, got a model for {preprocessing.dtype}; {ADVICE}"
            )
        shape = image_input(model, input).shape
        sides = [size for size in shape[1:] if size is not None]
        if len(sides) < len(shape) - 1:
            raise ConfigError(
                f"gradients of an ONNX model need fixed height, width and channels, got {shape}; {ADVICE}"
            )
        self.size = self.fixed_batch if isinstance(self.fixed_batch, int) else CHUNK
        size = preprocessing.to_pixels(torch.zeros(self.size, *sides)).shape
        pixels = torch.rand(size, generator=torch.Generator().manual_seed(0))
        with explained(f"this ONNX model fails on {self.size} images", ConfigError, ADVICE):
            outputs = self._run(preprocessing.to_classifier(pixels).numpy())
        answer = output.find(outputs)
        if len(answer) != self.size:
            raise ConfigError(
                f"this ONNX model must return one row of logits per image, got {len(answer)} rows for {self.size} "
                f"images; {ADVICE}"
            )
        self.answer_name = next(name for name, value in outputs.items() if value is answer)
        self.answer_shape = answer.shape[1:]
        self.adjoint = _adjoint(model, self.name, self.answer_name, self.size)
        self.differentiable = True
        self._compare(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.output.to_logits(self._answer(pixels))

    def describe(self) -> str:
        return f"{super().describe()}, differentiated by onnx-ad"

    def answers(self, images: Tensor) -> Tensor:
        """The model's answers, as it gives them, for images in its format."""
        given = images.detach().cpu().numpy()
        return torch.cat([self._run(part)[self.answer_name] for part in self._parts(given)]).to(images)

    def pulled_back(self, images: Tensor, upstream: Tensor) -> Tensor:
        """The vector-Jacobian product with ``upstream``, shaped like the answers; same shape as ``images``."""
        found = []
        for part, weights in zip(torch.split(images, self.size), torch.split(upstream, self.size), strict=True):
            feed = {
                self.name: _padded(part, self.size),
                PREFIX + self.answer_name: _padded(weights.unsqueeze(-1), self.size),
            }
            found.append(self.adjoint.run([PREFIX + self.name], feed)[0][: len(part), ..., 0])
        return torch.from_numpy(np.concatenate(found)).to(images)

    def _answer(self, pixels: Tensor) -> Tensor:
        found: Tensor = _Run.apply(self.preprocessing.to_classifier(pixels.float()), self)
        return found

    def _compare(self, pixels: Tensor) -> None:
        """Raise ``ConfigError`` if finite differences along the adjoint's own gradient contradict it."""
        upstream = torch.randn(self.size, *self.answer_shape, generator=torch.Generator().manual_seed(1))
        leaf = pixels.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((self._answer(leaf) * upstream).sum(), leaf)
        length = norm_of(gradient, "l2")
        ahead = gradient * scale_like(STEP / length.clamp_min(1e-12), gradient)
        with torch.no_grad():
            difference = self._answer(pixels + ahead) - self._answer(pixels - ahead)
            rise = (difference * upstream).reshape(self.size, -1).sum(1) / (2 * STEP)
        error = float((rise - length).abs().median() / length.median())
        if not length.median() > 0:
            raise ConfigError(f"the gradient of this ONNX model is zero or NaN; {ADVICE}")
        if not error < MAX_ERROR:
            raise ConfigError(
                f"the gradient of this ONNX model is off by {error:.0%} from finite differences, expected at most "
                f"{MAX_ERROR:.0%}; {ADVICE}"
            )


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, classifier: OnnxGradientClassifier) -> Tensor:
        ctx.save_for_backward(images)
        ctx.classifier = classifier
        return classifier.answers(images)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.classifier.pulled_back(ctx.saved_tensors[0], upstream[0]), None


def _adjoint(model: ModelProto, image: str, answer: str, size: int) -> onnxruntime.InferenceSession:
    """A session that computes ``PREFIX + image`` from a batch of ``size`` images and ``PREFIX + answer``."""
    try:
        onnx_ad = importlib.import_module("onnx_ad")
    except ImportError as error:
        raise ConfigError(
            "gradients of an ONNX model need the package onnx-ad: pip install 'adversarial-purifier[onnx-ad]'; or "
            f"{ADVICE}"
        ) from error
    fixed = ModelProto()
    fixed.CopyFrom(raise_opset(model, max(ADJOINT_OPSET, opset_of(model))))
    stored = {tensor.name for tensor in fixed.graph.initializer}
    inputs = [value for value in fixed.graph.input if value.name not in stored]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    for value in (*fixed.graph.input, *fixed.graph.output):
        if value.name in (image, answer):
            value.type.tensor_type.shape.dim[0].dim_value = size
    del fixed.graph.value_info[:]
    failure = "onnx-ad cannot differentiate this ONNX model"
    with explained(failure, ConfigError, ADVICE, passing=lambda error: False):
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
        written = onnx_ad.reverse(fixed, inputs=[image], outputs=[answer], prefix=PREFIX, layout="onnx")
        return open_session(written)


def _padded(part: Tensor, size: int) -> np.ndarray[Any, Any]:
    """(n, ...) -> (size, ...), padded with zeros at the end."""
    filled = part.new_zeros((size, *part.shape[1:]), device="cpu", dtype=torch.float32)
    filled[: len(part)] = part.detach()
    return filled.numpy()
