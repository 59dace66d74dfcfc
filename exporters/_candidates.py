"""Make what an exporter writes, and the reference it must reproduce, from a guard."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from purifier.answering import Answer, answer
from purifier.data.pixels import Preprocessing
from purifier.errors import ClassifierError, ExportError
from purifier.foreign_code import Attempt, explained
from purifier.guards.module import GuardedModule
from purifier.guards.session import GuardedSession
from purifier.onnx.front import PurifierFront, example_images, noise_for
from purifier.onnx.graft import purified_name
from purifier.onnx.guarded import guarded_graph, shown_outputs
from purifier.onnx.names import NOISE, REJECTED, SCORE
from purifier.onnx.opset import raise_opset
from purifier.onnx.rejection import answer_name, with_given_answer
from purifier.onnx.torch_export import export_module, innermost_cause
from purifier.output import Output

from ._verify import SIZE_ADVICE, Candidate, Expected, open_quietly, other_inputs

Shape: TypeAlias = tuple[int, int, int] | None


class FlatGuard(nn.Module):
    """A guard in the form of an ONNX graph: from one image tensor, and the purifier's noise, to a tuple of tensors."""

    def __init__(self, guard: GuardedModule) -> None:
        super().__init__()
        self.guard = guard

    def answer(self, image: Tensor, noise: Tensor | None = None) -> Answer:
        guard = self.guard
        args, kwargs = ((image,), {}) if guard.position == 0 else ((), {guard.input: image})
        pixels, bad = guard.read(args, kwargs)
        return guard.answer(args, kwargs, pixels, None if noise is None else noise.to(pixels.dtype), bad)

    def named(self, answer: Answer) -> dict[str, Tensor]:
        """The graph's outputs: every tensor in the classifier's output, then those that the guard adds."""
        extras = {SCORE: answer.score, REJECTED: answer.rejected}
        shown = shown_outputs(self.guard.score, self.guard.rejection)
        pairs = list(_flatten(answer.output, ""))
        if not pairs:
            raise TypeError("it returns no tensor")
        pairs += [(name, value) for name in shown if (value := extras[name]) is not None]
        named = dict(pairs)
        if len(named) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise TypeError(f"two of its outputs would be called {twice!r}; rename one of them")
        return named

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.named(self.answer(image, noise)).values())


def from_module(guard: GuardedModule, path: Path, shape: Shape, opset: int, noise: bool) -> Candidate:
    """The candidate for a torch guard, which is compared with the guard itself."""
    if shape is None:
        raise ExportError(
            f"{path}: neither the purifier nor the torch classifier fixes the images' shape; give image_shape=(C, H, "
            "W) (--image-shape 3x32x32 on the command line)",
            path,
        )
    kind = type(guard.classifier).__name__
    failed = partial(ExportError, path=path)
    with explained(f"{path}: {kind} and its purifier cannot be copied to the CPU", failed, describe=innermost_cause):
        flat = FlatGuard(copy.deepcopy(guard).cpu().eval())
    front = PurifierFront(flat.guard.purifier, guard.preprocessing)
    scored = guard.score or guard.rejection.active
    images = random_images(front, in_layout(shape, guard.preprocessing), mixed=scored)
    examples = [images(2)]
    inputs = [guard.input if guard.input.isidentifier() else "images"]
    if noise:
        examples.append(noise_for(front.purifier, front.pixels(examples[0])))
        inputs.append(NOISE)
    trial = f"{kind} fails when called with only its image, random {tuple(examples[0].shape)}"
    with explained(f"{path}: {trial}", failed, SIZE_ADVICE, describe=innermost_cause), torch.no_grad():
        answered = flat.answer(*examples)
    with explained(f"{path}: torch cannot export {kind}", failed, describe=innermost_cause):
        names = list(flat.named(answered))
        for name in inputs:
            if name in names:
                raise TypeError(f"the input and an output are both called {name!r}")
        free = [(0,)] * len(inputs)
        model = export_module(flat, examples, free=free, inputs=inputs, outputs=names, opset=opset)

    @torch.no_grad()
    def reference(batch: Tensor, given: Tensor | None, purified: object) -> Expected:
        answered = flat.answer(batch, given)
        outputs = {name: value.numpy() for name, value in flat.named(answered).items()}
        return Expected(outputs, _array(answered.score))

    return Candidate(
        model,
        inputs[0],
        images,
        reference,
        noise=_noise(front) if noise else None,
        threshold=guard.rejection.threshold if scored else None,
        replaced=("logits",) if guard.rejection.replaces else (),
        answer=_answer_of(flat, answered),
    )


def from_session(guard: GuardedSession, path: Path, shape: Shape, opset: int, noise: bool) -> Candidate:
    """The candidate for a guarded session, compared with the purifier in torch followed by the original classifier."""
    quiet, scored = copy.deepcopy(guard.purifier).cpu(), guard.score or guard.rejection.active
    front = PurifierFront(quiet, guard.preprocessing, scored, guard.rejection, guard.output).eval()
    given = in_layout(shape or (None, None, None), guard.preprocessing)
    declared = tuple(size or want for size, want in zip(guard.image.shape, given, strict=True))
    tap, shown = purified_name(guard.classifier), shown_outputs(guard.score, guard.rejection)
    kind = Output(kind=guard.output.kind)  # the reference's classify returns the answer alone
    replaced = answer_name(guard.classifier, guard.output) if guard.rejection.replaces else None
    original = _Unguarded(guard, replaced)

    @torch.no_grad()
    def reference(batch: Tensor, noise: Tensor | None, given: Any) -> Expected:
        found: dict[str, Any] = {}

        def classify(purified: Tensor) -> Tensor | None:
            made = guard.preprocessing.to_classifier(purified).numpy()
            found.update(original.run(made if given is None else given))
            return None if replaced is None else torch.from_numpy(found[replaced])

        pixels = front.pixels(batch)
        drawn = None if noise is None else noise.to(pixels.dtype)
        answered = answer(quiet, classify, pixels, drawn, rejection=guard.rejection, scored=scored, output=kind)
        if replaced is not None:
            made = guard.preprocessing.to_classifier(answered.purified).numpy()
            found.update(original.run(made if given is None else given, answered.output.numpy()))
        # If the image itself is an output, under its own name, the guard returns it unpurified.
        found.update({guard.input: batch.numpy()} if guard.input in found else {})
        extras = {
            SCORE: _array(answered.score),
            REJECTED: None if answered.rejected is None else answered.rejected.numpy(),
        }
        found.update({name: extras[name] for name in shown})
        if given is not None:
            found[tap] = guard.preprocessing.to_classifier(answered.purified).numpy()
        return Expected(found, _array(answered.score))

    model = guard.model
    if noise:
        model = guarded_graph(
            guard.classifier,
            guard.image,
            guard.purifier,
            guard.preprocessing,
            score=guard.score,
            rejection=guard.rejection,
            noise=True,
            output=guard.output,
            cache=guard.cache,
        )
    return Candidate(
        raise_opset(model, opset),
        guard.input,
        random_images(front, declared, mixed=scored),
        reference,
        tap,
        noise=_noise(front) if noise else None,
        threshold=guard.rejection.threshold if scored else None,
        replaced=original.names if replaced is not None else (),
        feed=guard.feed,
        answer=_named(guard),
    )


def _answer_of(flat: FlatGuard, answered: Answer) -> str:
    """The name of the graph's output that is the classifier's answer; empty if none can be."""
    with Attempt((ClassifierError,)):
        answer = flat.guard.output.find(answered.output)
        return next(name for name, value in flat.named(answered).items() if value is answer)
    return ""


def _named(guard: GuardedSession) -> str:
    """The same for a session."""
    with Attempt((ClassifierError,)):
        return answer_name(guard.classifier, guard.output)
    return ""


class _Unguarded:
    """The classifier of a session; given another answer, all that it computes from its answer follows from that."""

    def __init__(self, guard: GuardedSession, answer: str | None) -> None:
        self.guard, self.answer = guard, answer
        self.session = self.rest = open_quietly(guard.classifier)
        self.names = [output.name for output in self.session.get_outputs()]
        self.input = ""
        if answer is not None:
            tail, self.input = with_given_answer(guard.classifier, answer)
            self.rest = open_quietly(tail)

    def run(self, images: np.ndarray[Any, Any], answer: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
        """Its outputs for images in its own format, with another ``answer`` if given."""
        session = self.session if answer is None else self.rest
        others = other_inputs(self.session, (self.guard.input,), len(images), self.guard.feed)
        given = {} if answer is None else {self.input: answer}
        values = session.run(None, {**others, **given, self.guard.input: images})
        found = dict(zip(self.names, values, strict=True))
        return {**found, self.answer: answer} if answer is not None and self.answer is not None else found


def random_images(front: PurifierFront, shape: tuple[int | None, ...], *, mixed: bool) -> Callable[[int], Tensor]:
    """Batch size -> random images; if ``mixed``, every second one is as usual to the purifier as possible."""

    @torch.no_grad()
    def make(count: int) -> Tensor:
        images, _ = example_images(front.purifier, front.preprocessing, shape, count=count)
        if not mixed or count < 2:
            return images
        pixels = front.pixels(images)
        rest = pixels[1::2]
        # Without real images at hand, take dark, grey or light ones, whichever the purifier finds most usual.
        choices = torch.stack([0.1 * rest, 0.45 + 0.1 * rest, 0.9 + 0.1 * rest])
        pixels[1::2] = choices[front.purifier.score(choices[:, 0]).nan_to_num(torch.inf).argmin()]
        pixels[1] = 0  # decoders are certain here, so logarithms may overflow
        return front.preprocessing.to_classifier(pixels.float())

    return make


def _noise(front: PurifierFront) -> Callable[[Tensor], Tensor]:
    """Images -> a draw of the purifier's noise for them."""
    return lambda batch: noise_for(front.purifier, front.pixels(batch), seed=len(batch))


def in_layout(shape: tuple[int | None, ...], preprocessing: Preprocessing) -> tuple[int | None, ...]:
    """(C, H, W) in the classifier's layout, after a free batch size."""
    channels, height, width = shape
    inner = (height, width, channels) if preprocessing.layout == "NHWC" else (channels, height, width)
    return (None, *inner)


def _array(values: Tensor | None) -> Any:
    return None if values is None else values.float().numpy()


def _flatten(output: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a classifier's output, named by its position."""
    if isinstance(output, Tensor):
        yield name or "logits", output
        return
    if output is None:
        return
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping | type):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        parts = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(str(place) if name else f"output_{place}", value) for place, value in enumerate(output)]
    else:
        raise TypeError(f"expected tensors in its output, got {type(output).__name__}")
    for key, value in parts:
        yield from _flatten(value, f"{name}_{key}" if name else key)
