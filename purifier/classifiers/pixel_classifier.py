"""Any classifier, torch or ONNX, from pixels to logits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..data.pixels import Preprocessing
from ..errors import ClassifierError, GradientError, PurifierError, about
from ..foreign_code import Attempt, explained, is_exception
from ..onnx.feeding import NOTHING, Feed, check_fed
from ..onnx.image_input import image_input
from ..onnx.inner_output import inner_advice, kept_answer, with_inner_output
from ..onnx.labels import Labels, as_tensors
from ..onnx.names import REJECTED, SCORE
from ..onnx.rejection import answer_name
from ..onnx.runtime import open_session
from ..output import LOGITS, Output, check_tensors
from ..torch_tools.fingerprint import sha256_of
from .logits import one_row_per_image
from .verdict import Verdict, policy_of
from .white_box import Shared, Source, WhiteBox, compare, example_pixels


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
    hides_score = False
    """Whether it is a guard that rejects images by a score without gradients."""

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


class OnnxPixelClassifier(PixelClassifier):
    """An ONNX model behind its preprocessing, run by ONNX Runtime; torch computes its gradients.

    ``output`` may name a value inside the graph. Whether it has gradients is found out when somebody first asks: torch
    then takes over its graph, and is compared with ONNX Runtime. An exported guard's own score is part of that.
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
        self.policy = policy_of(model)
        self.threshold = self.policy.threshold
        given, model = model, with_inner_output(model, output.which)
        abstains = self.policy.abstains and not output.labels
        self._kept = kept_answer(model, answer_name(model, output)) if abstains else None
        """The value inside an abstaining guard's graph that has all logits."""
        model = with_inner_output(model, self._kept)
        found = image_input(model, input)
        self.name, self.shape, self.fixed_batch = found.name, found.shape, found.shape[0]
        content = model.SerializeToString(deterministic=True)
        whole = content if model is given else given.SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(whole).digest()
        self._weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        self._opened = Shared(open_session(content))
        self.feed = feed
        self._source = Source(model)
        self._advice = inner_advice(model)
        self.white_box: WhiteBox | None = None
        self.score_box: WhiteBox | None = None
        self.score_hidden = ""  # why the own score of an exported guard has no gradient
        self.labels = Labels(model, output) if output.labels else None
        self.labels_only = self.labels is not None
        self.answer = output if self.labels is None else self.labels.as_logits
        check_fed(self._opened.session.get_inputs(), self.name, feed)
        self._names = [output.name for output in self._opened.session.get_outputs()]
        ranks = {output.name: len(output.shape) for output in self._opened.session.get_outputs()}
        self.scores = ranks.get(SCORE) == 1
        """Whether the model is an exported guard that gives its score."""

    def forward(self, pixels: Tensor) -> Tensor:
        if _tracked(pixels) and self.differentiable:
            assert self.white_box is not None
            return one_row_per_image(self.answer.to_logits(self.white_box(pixels)), pixels)
        return self.verdict(pixels).kept

    def own_score(self, pixels: Tensor) -> Tensor:
        """The score (N,) of an exported guard that ``scores``, for pixels (N, C, H, W), differentiable if that can be.

        Raises
        ------
        GradientError
            ``pixels`` require a gradient, and the score has none.
        """
        if _tracked(pixels):
            if self.differentiable and self.score_box is not None:
                return one_row_per_image(self.score_box(pixels), pixels).flatten()
            if pixels.requires_grad:
                why = self.score_hidden or self.queries_only
                raise GradientError(f"the score of {self.describe()} has no gradient ({why}); use joint-square")
        score = self.verdict(pixels).score
        assert score is not None
        return score

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # found out once
        """Whether torch computes the same answers, with gradients that agree with ONNX Runtime.

        Raises
        ------
        ClassifierError
            None of the outputs can be the answer.
        """
        model = self._source.taken()
        if model is not None:
            with torch.inference_mode(False):  # weights made in that mode would have no part in gradients
                self._find_gradients(model)
        return self.white_box is not None

    @property
    def surrogates(self) -> tuple[str, ...]:  # type: ignore[override]
        """See the base class."""
        found = (self.white_box, self.score_box) if self.differentiable else ()
        return tuple(dict.fromkeys(name for one in found if one is not None for name in one.surrogates))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxPixelClassifier:
        self._source.convert(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]  # torch's

    def _find_gradients(self, model: ModelProto) -> None:
        if self.labels_only:
            inside = f", but {self._advice}" if self._advice else ""
            self.queries_only = f"it answers with a class and nothing else{inside}"
            return
        pixels = example_pixels(image_input(model, self.name).shape, self.preprocessing)
        with Attempt() as attempt:
            outputs = self._outputs(pixels)
        if attempt.error is not None:
            self.queries_only = f"it fails on random images ({attempt.cause})"
            return
        with about(self.file):
            answer = self._find(outputs)
        name = self._kept or next(name for name, value in outputs.items() if value is answer)
        self.white_box, self.queries_only = self._compared(model, name, pixels, outputs[name])
        if self.scores and self.white_box is not None:
            self.score_box, self.score_hidden = self._compared(model, SCORE, pixels, outputs[SCORE])

    def _compared(self, model: ModelProto, name: str, pixels: Tensor, expected: Tensor) -> tuple[WhiteBox | None, str]:
        """The output called ``name`` by torch; or None, and why its gradient cannot be trusted."""
        fixed = self.fixed_batch if isinstance(self.fixed_batch, int) else None
        with Attempt((PurifierError,)) as attempt:
            made = WhiteBox(model, name, self.name, self.preprocessing, self.feed, fixed, self.describe()).eval()
            with explained("its gradient cannot be computed", partial(ClassifierError, path="")):
                compare(made, lambda images: self._outputs(images)[name], pixels, expected)
            return self._source.converted(made.requires_grad_(False)), ""
        return None, str(attempt.error).partition(";")[0]

    def _outputs(self, pixels: Tensor) -> dict[str, Any]:
        """All outputs that are tensors, by name, for pixels (N, C, H, W), which may be more than fit into a batch."""
        parts = [self._run(part) for part in self._parts(self.preprocessing.to_classifier(pixels).numpy())]
        tensors = [name for name, one in parts[0].items() if isinstance(one, Tensor)]
        return {**parts[0], **{name: torch.cat([part[name] for part in parts]) for name in tensors}}

    @property
    def marks(self) -> bool:
        """Whether the model is an exported guard whose rejected images have no answer that counts."""
        return not self.policy.answers_all and (REJECTED in self._names or self.policy.abstains)

    @property
    def hides_score(self) -> bool:  # type: ignore[override]
        """See the base class."""
        return self.marks and not (self.differentiable and self.score_box is not None)

    def verdict(self, pixels: Tensor) -> Verdict:
        """The model's logits for pixels (N, C, H, W), and if it is an exported guard, its score and rejections."""
        images = self.preprocessing.to_classifier(pixels.detach()).cpu().numpy()
        parts = [self._run(part) for part in self._parts(images)]
        answers = torch.cat([self._find(part) for part in parts])
        kept = answers if self._kept is None else torch.cat([part[self._kept] for part in parts])
        logits, kept = (
            one_row_per_image(self.answer.to_logits(one), pixels).to(pixels.device, torch.float32)
            for one in (answers, kept)
        )
        score, rejected = (
            torch.cat([torch.as_tensor(part[name]) for part in parts]).to(pixels.device) if name in parts[0] else None
            for name in (SCORE, REJECTED)
        )
        if rejected is None and self.policy.abstains:
            rejected = answers.reshape(len(answers), -1).isnan().all(1).to(pixels.device)
        return Verdict(logits, kept, score, rejected)

    def sha256(self) -> str:
        return self.digest.hex()

    def count_parameters(self) -> int:
        return int(self._weights)

    def describe(self) -> str:
        name = "an ONNX model" if self.file is None else f"the ONNX model {self.file}"
        return f"{name} on {self._opened.session.get_providers()[0]}{self.output.describe()}"

    def _find(self, outputs: dict[str, Any]) -> Tensor:
        """The answer among all outputs; an error says which value inside the graph could be it."""
        own = {name: value for name, value in outputs.items() if name not in (SCORE, REJECTED, self._kept)}
        with Attempt((ClassifierError,)) as attempt:
            return self.answer.find(own or outputs)  # somebody else's only output may have such a name
        raise ClassifierError(f"{attempt.error}" + (f"; {self._advice}" if self._advice else ""), "")

    def _run(self, images: np.ndarray[Any, Any]) -> dict[str, Any]:
        """All outputs by name, in order; floats as tensors, with one row per image."""
        padding = self.fixed_batch - len(images) if isinstance(self.fixed_batch, int) else 0
        padded = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)]) if padding else images
        outputs = self._opened.session.run(None, {**self.feed.of(len(padded)), self.name: padded})
        found = dict(zip(self._names, outputs, strict=True))
        return as_tensors(found, self.labels, len(images) if padding else None)

    def _parts(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        size = self.fixed_batch if isinstance(self.fixed_batch, int) else max(len(images), 1)
        return [images[start : start + size] for start in range(0, max(len(images), 1), size)]


def _tracked(pixels: Tensor) -> bool:
    """Whether torch has to compute the answers for these pixels."""
    return pixels.dtype == torch.float64 or (pixels.requires_grad and torch.is_grad_enabled())


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
