"""An ONNX Runtime session whose graph is a purifier followed by somebody else's classifier."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..contracts.purifier import Purifier, image_shape_of
from ..data.pixels import DTYPES, Preprocessing, check_range
from ..errors import ConfigError, PixelError
from ..foreign_code import explained
from ..onnx.guarded import guarded_graph
from ..onnx.image_input import ImageInput, image_input, infer_preprocessing
from ..onnx.names import REJECTED, SCORE
from ..onnx.reader import load_onnx
from ..onnx.runtime import Provider, check_provider, explained_opening, session_arguments
from ..rejection.policy import rejection_of
from ..vocabulary import OnReject


class GuardedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """An ONNX classifier behind a purifier: the classifier's inputs and outputs, in one graph.

    :meth:`run` checks the images' shape and range first; ONNX Runtime's other ways to run (IO binding,
    OrtValues, asynchronous) do not. A random purifier gives its mean.

    Parameters
    ----------
    classifier
        An ONNX file or model; it is not changed.
    purifier
        Goes into the graph as it is now: training it later does not change the session.
    preprocessing
        How the classifier wants its images; by default what the input's type and shape say.
    input
        The image input's position or name; by default the only one that can be an image.
    score
        Add how unusual each image is, ``purifier_score`` (N,), as the last output; and after it, if the purifier is
        calibrated, ``purifier_rejected``, bool (N,).
    on_reject, abstain
        What to do with rejected images, as for :func:`purifier.guard`. ``flag`` adds ``purifier_rejected`` as the last
        output; ``raise`` is done by :meth:`run` alone.
    providers, sess_options
        As for ``onnxruntime.InferenceSession``; a provider asked for and not had is an error. By default CUDA
        if it loads, else the CPU.

    Attributes
    ----------
    model
        The graph that runs, which :func:`purifier.export` writes.

    Raises
    ------
    ClassifierError
        The classifier cannot be read, or is none that can be guarded.
    ConfigError
        The purifier, the preprocessing and the classifier do not fit together; ``input`` or ``providers`` is of
        the wrong kind; or a provider is not to be had.
    """

    def __init__(
        self,
        classifier: str | Path | ModelProto,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing | None = None,
        input: int | str | None = None,
        score: bool = False,
        on_reject: OnReject = "ignore",
        abstain: int | None = None,
        providers: Sequence[Provider] | None = None,
        sess_options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        _check_providers(providers)
        self.classifier = load_onnx(classifier)
        self.image = image_input(self.classifier, input)
        self.input = self.image.name
        self.purifier, self.score = copy.deepcopy(purifier), score
        self.preprocessing = _fitted(preprocessing, self.image)
        self.rejection = rejection_of(purifier, on_reject, abstain)
        self.model = guarded_graph(
            self.classifier, self.image, purifier, self.preprocessing, score=score, rejection=self.rejection
        )
        source = "guarded classifier" if isinstance(classifier, ModelProto) else f"guarded {classifier}"
        arguments = session_arguments(providers, sess_options)
        with explained_opening(source):
            super().__init__(self.model.SerializeToString(), **arguments)
        check_provider(self, providers)

    def pixel_classifier(self) -> PixelClassifier:
        """The classifier alone, from pixels to logits."""
        return pixel_classifier(self.classifier, self.preprocessing, self.input)

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
            The image input has an impossible shape, type or range.
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
        """As ``onnxruntime.InferenceSession.get_outputs``: what :meth:`run` gives if no outputs are named."""
        outputs: list[Any] = super().get_outputs()
        hidden = (SCORE, REJECTED) if self.rejection.on_reject == "raise" and not self.score else ()
        return [output for output in outputs if output.name not in hidden]

    def _checked(self, images: Any) -> np.ndarray[Any, Any]:
        failure = f"{self.input}: expected a NumPy array of images, got {type(images).__name__}"
        with explained(failure, PixelError):
            found = np.asarray(images)
        if isinstance(images, list) and found.dtype == np.float64 and self.image.dtype != "uint8":
            found = found.astype(self.image.dtype)  # as ONNX Runtime reads a list of Python's floats
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
            raise PixelError(f"{self.input}: the classifier takes {wanted[0]} images a call, got {images.shape[0]}")
        if not fits:
            letters = [letter if size is None else str(size) for letter, size in zip(layout, wanted, strict=True)]
            raise PixelError(
                f"{self.input}: expected images ({', '.join(letters)}), got {images.shape}; resize them, or say "
                "their layout with preprocessing="
            )
        if images.dtype != np.dtype(self.image.dtype):
            raise PixelError(f"{self.input}: expected {self.image.dtype} images, got {images.dtype}")
        if self.image.dtype != "uint8":
            # torch takes no negative strides, which reversed channels have.
            values = torch.tensor(np.ascontiguousarray(images))
            check_range(self.preprocessing.to_pixels(values), name=self.input)


def _check_providers(providers: Any) -> None:
    """Names, or names with options; which of them exist is for :mod:`purifier.onnx.runtime` to say."""
    entries = providers if isinstance(providers, list | tuple) else [] if providers is None else [None]
    for entry in entries:
        name = entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(name, str):
            raise ConfigError(f"providers: expected a list of names or (name, options) pairs, got {providers!r}")


def _fitted(preprocessing: Preprocessing | None, image: ImageInput) -> Preprocessing:
    """The preprocessing with the input's own type: the graph's is a fact, float32 only a default."""
    if preprocessing is None:
        return infer_preprocessing(image)
    if preprocessing.dtype not in ("float32", image.dtype):
        raise ConfigError(
            f"preprocessing: says {preprocessing.dtype}, but the classifier's input {image.name!r} takes {image.dtype}"
        )
    assert image.dtype in DTYPES
    return dataclasses.replace(preprocessing, dtype=image.dtype)
