"""An ONNX Runtime session that runs a purifier and a classifier as one graph."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from ..classifiers.pixel_classifier import PixelClassifier, pixel_classifier
from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..errors import about
from ..onnx.feeding import read_feed
from ..onnx.guarded import guarded_parts
from ..onnx.image_input import image_input, preprocessing_for
from ..onnx.image_shape import agreed_shape, given_shape
from ..onnx.inner_output import shown_inside
from ..onnx.labels import Labels
from ..onnx.names import REJECTED, SCORE
from ..onnx.reader import read_onnx
from ..onnx.rejection import answer_name
from ..onnx.runtime import (
    CPU,
    Providers,
    check_provider,
    check_providers,
    explained_opening,
    placement_of,
    session_arguments,
)
from ..onnx.session_options import options_as_values, options_of
from ..onnx.weights import SplitModel, Weights, arrays_of, lend, with_weights
from ..output import LOGITS, Output
from ..rejection.policy import rejection_of
from ..vocabulary import OnBadPixels, OnReject
from .bound_run import FixedMemory, captures, is_numeric, run_on_tensors
from .hub_folder import Pretrained
from .session_images import SessionImages


class GuardedSession(Pretrained, onnxruntime.InferenceSession):  # type: ignore[misc]
    """An ONNX classifier behind a purifier: one graph with the classifier's own inputs and outputs.

    ``run`` first checks the shape and range of the images. ONNX Runtime's other ways to run (IO binding, OrtValues,
    asynchronous runs) do not; a bad image then gets no answer: NaN, or -1 for a label. A random purifier is replaced by
    its mean.

    Parameters
    ----------
    classifier
        An ONNX file or model, or what ``read_onnx`` made of a file; it is not changed.
    purifier
        Copied into the graph as it is now: training it later does not change the session.
    preprocessing
        How the classifier wants its images; by default inferred from the input's type and shape.
    input
        The position or name of the image input; by default the only input that can be an image.
    output
        Which output is the classifier's answer, and of what kind. A value inside the graph becomes one more output.
    score
        Append the output ``purifier_score`` (N,), how unusual each image is, and, if the purifier is calibrated,
        ``purifier_rejected``, bool (N,).
    on_reject, abstain
        What to do with rejected images, as for ``purifier.guard``. ``flag`` adds ``purifier_rejected`` as the last
        output; only ``run`` supports ``raise``.
    on_bad_pixels
        What to do with bad images, as for ``purifier.guard``. Only ``run`` raises; however the graph is run, a bad
        image gets no answer or that of a rejected image.
    image_shape
        (C, H, W) of the images, where the classifier leaves their sizes free. The graph then takes these sizes only,
        as it takes those of the purifier only if that fixes them.
    feed
        Values for the classifier's other inputs, by name, where ``run`` is not given them; for audits and exports too.
        A value with a row per image may have a single row, for all.
    providers, sess_options
        As for ``onnxruntime.InferenceSession``, but a requested provider that does not load is an error; ``providers``
        may also be a policy of ONNX Runtime's, such as ``prefer-gpu``. By default CUDA if it loads, else the CPU.
    file
        The file that a ``classifier`` given as a model was read from, for errors; the model is not checked again.
    cache
        Keep the purifier's graph in the user's cache folder, and take it from there.

    Raises
    ------
    ClassifierError
        The classifier cannot be read or cannot be guarded.
    ConfigError
        The purifier, the preprocessing and the classifier do not fit together; an option is wrong; or a requested
        provider is unavailable.
    """

    def __init__(
        self,
        classifier: str | Path | ModelProto | SplitModel,
        purifier: Purifier,
        *,
        preprocessing: Preprocessing | None = None,
        input: int | str | None = None,
        output: Output = LOGITS,
        score: bool = False,
        on_reject: OnReject = "ignore",
        abstain: int | None = None,
        on_bad_pixels: OnBadPixels = "raise",
        image_shape: tuple[int, int, int] | None = None,
        feed: Mapping[str, Any] | None = None,
        providers: Providers | None = None,
        sess_options: onnxruntime.SessionOptions | None = None,
        file: str | None = None,
        cache: bool = True,
    ) -> None:
        check_providers(providers)
        self.rejection = rejection_of(purifier, on_reject, abstain, on_bad_pixels)
        self.file = str(classifier) if isinstance(classifier, str | Path) else file
        read = SplitModel(classifier) if isinstance(classifier, ModelProto) and file is not None else classifier
        stored = read if isinstance(read, SplitModel) else read_onnx(read)
        self._stored, self.output = shown_inside(stored, output.which), output
        bare = self._stored.bare
        with about(self.file):
            image = image_input(bare, input)
            self.input = image.name
            self.feed = read_feed(bare, self.input, feed)
            self.labels = Labels(bare, output) if output.labels else None
            if output.which is not None:
                answer_name(bare, output)  # fail now if there is no such output
            self.preprocessing = preprocessing_for(image, preprocessing)
            shape = agreed_shape(purifier, self.preprocessing, image.shape, given_shape(image_shape))
            self.image = dataclasses.replace(image, shape=shape)
        self.purifier, self.score, self.cache = copy.deepcopy(purifier), score, cache
        with about(self.file):
            self._bare, self._weights = guarded_parts(
                self._stored,
                self.image,
                purifier,
                self.preprocessing,
                score=score,
                rejection=self.rejection,
                output=output,
                cache=cache,
            )
        self._open(providers, sess_options)

    def _open(self, providers: Providers | None, sess_options: onnxruntime.SessionOptions | None) -> None:
        arguments = session_arguments(providers, sess_options)
        content, self._arrays = self._bare, {}
        with explained_opening(f"guarded {self.file or 'classifier'}", arguments["providers"]):
            # The user's own options must not change, and other providers copy weights anyway.
            if sess_options is None and arguments["providers"] == [CPU]:
                self._arrays = arrays_of(self._weights)
                lend(arguments["sess_options"], self._arrays)
            else:
                content = with_weights(self._bare, self._weights)
            super().__init__(content.SerializeToString(), **arguments)
        check_provider(self, providers)
        self._given, self._opened = (providers, sess_options), self.get_providers()
        self._fixed = FixedMemory(self) if captures(self) else None

    @functools.cached_property
    def classifier(self) -> ModelProto:
        """The classifier alone, with all its weights; for a file, a copy made when it is first asked for."""
        return self._stored.whole

    @functools.cached_property
    def model(self) -> ModelProto:
        """The graph that runs, a copy made when it is first asked for; ``purifier.export`` writes it."""
        return with_weights(self._bare, self._weights)

    def __copy__(self) -> GuardedSession:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Everything that a copy is made from, here or in another process; it opens a session of its own.

        Raises
        ------
        ConfigError
            A session option is set that a copy cannot have, see ``options_as_values``.
        """
        providers, options = self._given
        if self.get_providers() != self._opened:  # set_providers was called
            providers = list(self.get_provider_options().items())
        copies = ("classifier", "model")
        facts = {name: value for name, value in vars(self).items() if name[0] != "_" and name not in copies}
        stored = (self._stored.bare.SerializeToString(), self._stored.weights)
        graph = (self._bare.SerializeToString(), list(self._weights))
        return _restored, (type(self), facts, stored, graph, providers, options_as_values(options))

    def pixel_classifier(self) -> PixelClassifier:
        """The classifier alone, from pixels to logits."""
        return pixel_classifier(self.classifier, self.preprocessing, self.input, self.output, self.file, self.feed)

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
            The shape or dtype of the images is wrong, or an image is bad and bad images are not rejected.
        RejectedError
            Images are rejected, and the guard was made with ``on_reject="raise"``.
        """
        if isinstance(input_feed, Mapping) and self.input in input_feed:
            images = input_feed[self.input]
            if isinstance(images, onnxruntime.OrtValue):
                given, count = images, images.shape()[0]
            else:
                given = self._images.array(images)
                count = len(given)
            input_feed = {**self.feed.of(count), **input_feed, self.input: given}
        if self.rejection.on_reject != "raise":
            return super().run(output_names, input_feed, run_options)  # type: ignore[no-any-return]
        names = list(output_names) if output_names else [output.name for output in self.get_outputs()]
        values: list[Any] = super().run([*names, SCORE, REJECTED], input_feed, run_options)
        self._raise_rejected(values)
        return values

    def _raise_rejected(self, values: list[Any]) -> None:
        rejected, score = values.pop(), values.pop()  # the last outputs, which are asked for to know this
        if rejected.any():
            raise self.rejection.error(np.asarray(rejected), np.asarray(score))

    @property
    def _images(self) -> SessionImages:
        return SessionImages(self.image, self.preprocessing, self.rejection)

    def __call__(self, images: Any, **others: Any) -> Any:
        """Answer images where they are, in a call like that of a torch module; errors are those of ``run``.

        Parameters
        ----------
        images
            (N, ...) as the classifier takes them: a torch tensor or another object with DLPack (CuPy, JAX), whose
            memory is shared if it is on the session's device, or a NumPy array.
        **others
            The values of other inputs, by name.

        Returns
        -------
        Tensor, or array
            The only output, or a tuple; on the device of a tensor, and NumPy arrays for a NumPy array. A graph that
            gives strings, maps or sequences answers as ``run`` does.
        """
        outputs = self.get_outputs()
        names = [output.name for output in outputs]
        if isinstance(images, np.ndarray | list) or not all(map(is_numeric, outputs)):
            values = self.run(names, {self.input: images, **others})
        else:
            given = self._images.tensor(images)
            feed = {**self.feed.of(len(given)), **others}
            tensors = {self.input: given, **{name: torch.as_tensor(value) for name, value in feed.items()}}
            hidden = (SCORE, REJECTED) if self.rejection.on_reject == "raise" else ()
            run = functools.partial(run_on_tensors, self) if self._fixed is None else self._fixed.run
            values = run([*names, *hidden], tensors)
            if hidden:
                self._raise_rejected(values)
            values = [value.to(given.device) for value in values]
        return values[0] if len(values) == 1 else tuple(values)

    def placement(self) -> dict[str, int]:
        """How many nodes of the graph, as ONNX Runtime optimised it, run on each provider."""
        return placement_of(self)

    def get_outputs(self) -> list[Any]:
        """As ``onnxruntime.InferenceSession.get_outputs``: the outputs that ``run`` returns by default."""
        outputs: list[Any] = super().get_outputs()
        hidden = (SCORE, REJECTED) if self.rejection.on_reject == "raise" and not self.score else ()
        return [output for output in outputs if output.name not in hidden]


def _restored(
    cls: type[GuardedSession],
    facts: dict[str, Any],
    stored: tuple[bytes, Weights],
    graph: tuple[bytes, list[str]],
    providers: Providers | None,
    options: dict[str, Any] | None,
) -> GuardedSession:
    """The session that was pickled; unless it was given providers, it takes the best ones here."""
    made = cls.__new__(cls)
    made.__dict__.update(facts)
    made._stored = SplitModel(ModelProto.FromString(stored[0]), stored[1])
    made._bare = ModelProto.FromString(graph[0])
    known = {tensor.name: tensor for tensor in made._stored.bare.graph.initializer} | dict(stored[1])
    made._weights = {name: known[name] for name in graph[1]}
    made._open(providers, options_of(options))
    return made
