"""An ONNX Runtime session that runs a purifier and a classifier as one graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..contracts.purifier import Purifier, image_shape_of
from ..data.pixels import Preprocessing, check_range
from ..errors import ConfigError, PixelError, about
from ..foreign_code import explained
from ..onnx.guarded import guarded_graph
from ..onnx.image_input import image_input, preprocessing_for
from ..onnx.names import REJECTED, SCORE
from ..onnx.reader import load_onnx
from ..onnx.rejection import answer_name
from ..onnx.runtime import Provider, check_provider, explained_opening, session_arguments
from ..output import LOGITS, Output
from ..rejection.policy import rejection_of
from ..vocabulary import OnReject


class GuardedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """An ONNX classifier behind a purifier: one graph with the classifier's own inputs and outputs.

    ``run`` first checks the shape and range of the images; ONNX Runtime's other ways to run (IO binding,
    OrtValues, asynchronous runs) do not. A random purifier is replaced by its mean.

    Parameters
    ----------
    classifier
        An ONNX file or model; it is not changed.
    purifier
        Copied into the graph as it is now: training it later does not change the session.
    preprocessing
        How the classifier wants its images; by default inferred from the input's type and shape.
    input
        The position or name of the image input; by default the only input that can be an image.
    output
        Which output is the classifier's answer, and of what kind.
    score
        Append the output ``purifier_score`` (N,), how unusual each image is, and, if the purifier is calibrated,
        ``purifier_rejected``, bool (N,).
    on_reject, abstain
        What to do with rejected images, as for ``purifier.guard``. ``flag`` adds ``purifier_rejected`` as the last
        output; only ``run`` supports ``raise``.
    providers, sess_options
        As for ``onnxruntime.InferenceSession``, but a requested provider that does not load is an error. By default
        CUDA if it loads, else the CPU.
    file
        For errors: the file that a ``classifier`` given as a model was read from.

    Attributes
    ----------
    model
        The graph that runs; ``purifier.export`` writes it.

    Raises
    ------
    ClassifierError
        The classifier cannot be read or cannot be guarded.
    ConfigError
        The purifier, the preprocessing and the classifier do not fit together; ``input`` or ``providers`` is wrong; or
        a requested provider is unavailable.
    """

    def __init__(
        self,
        classifier: str | Path | ModelProto,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing | None = None,
        input: int | str | None = None,
        output: Output = LOGITS,
        score: bool = False,
        on_reject: OnReject = "ignore",
        abstain: int | None = None,
        providers: Sequence[Provider] | None = None,
        sess_options: onnxruntime.SessionOptions | None = None,
        file: str | None = None,
    ) -> None:
        _check_providers(providers)
        self.classifier = load_onnx(classifier)
        self.file = file if isinstance(classifier, ModelProto) else str(classifier)
        self.output = output
        with about(self.file):
            self.image = image_input(self.classifier, input)
            self.input = self.image.name
            if output.which is not None:
                answer_name(self.classifier, output)  # fail now if there is no such output
            self.preprocessing = preprocessing_for(self.image, preprocessing)
        self.purifier, self.score = copy.deepcopy(purifier), score
        self.rejection = rejection_of(purifier, on_reject, abstain)
        with about(self.file):
            self.model = guarded_graph(
                self.classifier,
                self.image,
                purifier,
                self.preprocessing,
                score=score,
                rejection=self.rejection,
                output=output,
            )
        source = f"guarded {self.file or 'classifier'}"
        arguments = session_arguments(providers, sess_options)
        with explained_opening(source):
            super().__init__(self.model.SerializeToString(), **arguments)
        check_provider(self, providers)

    def pixel_classifier(self) -> PixelClassifier:
        """The classifier alone, from pixels to logits."""
        return pixel_classifier(self.classifier, self.preprocessing, self.input, self.output, self.file)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> list[Any]:
        """As ``onnxruntime.InferenceSession.run``.

        Raises
        ------
        PixelError
            The shape, dtype or range of the images is wrong.
        RejectedError
            Images are rejected, and the guard was made with ``on_reject="raise"``.
        """
        if isinstance(input_feed, Mapping) and self.input in input_feed:
            images = input_feed[self.input]
            if not isinstance(images, onnxruntime.OrtValue):
                input_feed = {**input_feed, self.input: self._checked(images)}
        if self.rejection.on_reject != "raise":
            return super().run(output_names, input_feed, run_options)  # type: ignore[no-any-return]
        names = list(output_names) if output_names else [output.name for output in self.get_outputs()]
        values: list[Any] = super().run([*names, SCORE, REJECTED], input_feed, run_options)
        rejected, score = values.pop(), values.pop()
        if rejected.any():
            raise self.rejection.error(rejected, score)
        return values

    def get_outputs(self) -> list[Any]:
        """As ``onnxruntime.InferenceSession.get_outputs``: the outputs that ``run`` returns by default."""
        outputs: list[Any] = super().get_outputs()
        hidden = (SCORE, REJECTED) if self.rejection.on_reject == "raise" and not self.score else ()
        return [output for output in outputs if output.name not in hidden]

    def _checked(self, images: Any) -> np.ndarray[Any, Any]:
        failure = f"{self.input}: expected a NumPy array of images, got {type(images).__name__}"
        with explained(failure, PixelError):
            found = np.asarray(images)
        if isinstance(images, list) and found.dtype == np.float64 and self.image.dtype != "uint8":
            found = found.astype(self.image.dtype)  # as ONNX Runtime reads a list of Python floats
        self._check(found)
        return found

    def _check(self, images: np.ndarray[Any, Any]) -> None:
        layout, wanted = self.preprocessing.layout, self.image.shape
        sizes = image_shape_of(self.purifier)
        if sizes is not None:
            channels, height, width = sizes
            inner = (height, width, channels) if layout == "NHWC" else (channels, height, width)
            wanted = (self.image.shape[0], *inner)
        fits = images.ndim == 4 and all(
            size is None or size == got for size, got in zip(wanted, images.shape, strict=True)
        )
        if not fits and images.shape[1:] == tuple(wanted[1:]):
            raise PixelError(f"{self.input}: the classifier takes {wanted[0]} images per call, got {images.shape[0]}")
        if not fits:
            letters = [letter if size is None else str(size) for letter, size in zip(layout, wanted, strict=True)]
            raise PixelError(
                f"{self.input}: expected images ({', '.join(letters)}), got {images.shape}; resize them, or set "
                "their layout in preprocessing="
            )
        if images.dtype != np.dtype(self.image.dtype):
            raise PixelError(f"{self.input}: expected {self.image.dtype} images, got {images.dtype}")
        if self.image.dtype != "uint8":
            # torch does not support negative strides, which reversed channels have.
            values = torch.tensor(np.ascontiguousarray(images))
            check_range(self.preprocessing.to_pixels(values), name=self.input)


def _check_providers(providers: Any) -> None:
    """Raise unless these are names, or names with options; ``purifier.onnx.runtime`` checks that they exist."""
    entries = providers if isinstance(providers, list | tuple) else [] if providers is None else [None]
    for entry in entries:
        name = entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(name, str):
            raise ConfigError(f"providers: expected a list of names or (name, options) pairs, got {providers!r}")
