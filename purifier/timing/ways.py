"""The ways to get an answer that are timed: classifier and guard, in torch, compiled, and in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from onnxruntime import InferenceSession, SessionOptions
from torch import Tensor, nn

from ..foreign_code import Attempt
from ..guards.exporting import export
from ..guards.guard import Guard
from ..guards.module import GuardedModule
from ..onnx.feeding import NOTHING, Feed
from ..onnx.runtime import CPU, CUDA, open_session
from ..onnx.torch_export import export_module

CLASSIFIER, GUARD = "classifier", "guard"
TORCH, COMPILED, RUNTIME = "torch", "torch.compile", "onnxruntime"

ERRORS_ONLY = 3
"""ONNX Runtime's log level."""
STOP_SPINNING = "session.force_spinning_stop"
"""Its threads wait actively for more work after a call, which would slow down whoever has the next turn."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way to answer: ``given`` prepares images (N, ...) as the classifier takes them, and returns the call."""

    what: str
    """``classifier`` or ``guard``."""
    engine: str
    given: Callable[[Tensor], Call]

    def __str__(self) -> str:
        return f"{self.what}, {self.engine}"


def ways_of(guard: Guard, images: Tensor, folder: Path, *, compiled: bool) -> Iterator[tuple[str, Callable[[], Way]]]:
    """The name of each way, and a function that makes it; that may take a while, or fail.

    Parameters
    ----------
    images
        Two images on the device to run on, as the classifier takes them.
    folder
        A folder for exported files.
    compiled
        Whether to compile the guard.
    """
    cuda = images.is_cuda
    if isinstance(guard, GuardedModule):
        plain, own = guard.classifier, guard
        yield f"{CLASSIFIER}, {TORCH}", lambda: _in_torch(CLASSIFIER, TORCH, plain)
        yield f"{GUARD}, {TORCH}", lambda: _in_torch(GUARD, TORCH, own)
        if compiled:
            yield f"{GUARD}, {COMPILED}", lambda: _in_torch(GUARD, COMPILED, torch.compile(copy.deepcopy(own)))
        yield f"{CLASSIFIER}, {RUNTIME}", lambda: _in_runtime(CLASSIFIER, _as_graph(plain, images), cuda)
        yield f"{GUARD}, {RUNTIME}", lambda: _in_runtime(GUARD, export(own, folder / "guard.onnx").path, cuda)
        return
    session = guard
    alone = partial(open_session, providers=session.get_providers())
    yield f"{CLASSIFIER}, {RUNTIME}", lambda: _asked(CLASSIFIER, alone(session.classifier), session.input, session.feed)
    yield f"{GUARD}, {RUNTIME}", lambda: _asked(GUARD, session, session.input, session.feed)


def all_ways(guard: Guard, images: Tensor, folder: Path, *, compiled: bool) -> tuple[list[Way], dict[str, str]]:
    """The ways that work, and for each other one why it does not."""
    found: list[Way] = []
    missing: dict[str, str] = {}
    for name, make in ways_of(guard, images, folder, compiled=compiled):
        with Attempt() as attempt, torch.no_grad():
            way = make()
            way.given(images)()
            found.append(way)
        if attempt.error is not None:
            missing[name] = attempt.cause
    return found, missing


def _in_torch(what: str, engine: str, module: Any) -> Way:
    return Way(what, engine, lambda images: lambda: module(images))


def _in_runtime(what: str, model: ModelProto | Path, cuda: bool) -> Way:
    session = open_session(model, providers=[CUDA if cuda else CPU], options=options_for_turns())
    return _asked(what, session, session.get_inputs()[0].name, NOTHING)


def options_for_turns() -> SessionOptions:
    """Options of a session that takes turns with torch: as many threads, which rest when it is not its turn."""
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(STOP_SPINNING, "1")
    return options


def _asked(what: str, session: InferenceSession, input: str, feed: Feed) -> Way:
    def given(images: Tensor) -> Call:
        values = {**feed.of(len(images)), input: images.cpu().numpy()}
        return lambda: session.run(None, values)

    return Way(what, RUNTIME, given)


def _as_graph(classifier: nn.Module, images: Tensor) -> ModelProto:
    return export_module(classifier, [images.cpu()], free=[[0]], inputs=["image"], outputs=["logits"])
