"""Keep the graphs of purifiers and guards in the user's cache folder, because exporting a purifier takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..errors import ClassifierError
from .cache_folder import Shelf, cache_folder
from .front import purifier_graph
from .front_key import front_key
from .graphs import all_tensors
from .loaded_code import Unkeyed
from .reader import load_onnx
from .weights import is_mark

FOLDER = "fronts"
MAGIC = b"purifier front"
LARGEST = 4_000_000
"""Bytes of a classifier without its large weights whose guard's graph is kept."""


def kept_graph(purifier: Purifier, preprocessing: Preprocessing, **options: Any) -> ModelProto:
    """As ``purifier_graph``, from the user's cache if it was made before.

    A kept graph is used only if its folder and file are the user's own, it was kept under this key, its bytes have the
    hash written with them, and ``load_onnx`` accepts it. Purifiers for which no key can stand (see ``front_key``) are
    exported each time.

    Raises
    ------
    ConfigError, PluginError
        As for ``purifier_graph``.
    """
    make = partial(purifier_graph, purifier, preprocessing, **options)
    return _kept("front", make, load_onnx, purifier, {"preprocessing": preprocessing, **options})


def kept_graft(
    make: Callable[[], ModelProto], purifier: Purifier, classifier: ModelProto, options: Mapping[str, Any]
) -> ModelProto:
    """What ``make`` grafts in front of a classifier without its large weights, from the cache if it was made before.

    It is trusted as in ``kept_graph``, save that ``load_onnx`` has accepted the classifier alone just before, and the
    front when both were put together; that the graph reads no other files is checked again. ``options`` are all that
    decides it besides the two, and a large ``classifier`` is not kept.
    """
    content = classifier.SerializeToString(deterministic=True)
    if len(content) > LARGEST:
        return make()
    asked = {**options, "classifier": hashlib.sha256(content).hexdigest()}
    marks = {tensor.name for tensor in classifier.graph.initializer if is_mark(tensor)}
    return _kept("graft", make, partial(_without_files, marks=marks), purifier, asked)


def _kept(
    kind: str,
    make: Callable[[], ModelProto],
    accept: Callable[[ModelProto], ModelProto],
    purifier: Purifier,
    options: dict[str, Any],
) -> ModelProto:
    """The graph of a kind under the key of a purifier and options, made unless ``accept`` returns the kept one."""
    shelf = front_shelf()
    key = None if shelf is None else _key(purifier, options)
    if shelf is None or key is None:
        return make()
    name = f"{key}.{kind}"
    content = shelf.read(name)
    found = None if content is None else _unpacked(content, key, accept)
    if found is None:
        found = make()
        shelf.write(name, _packed(found.SerializeToString(), key))
    return found


def _without_files(model: ModelProto, marks: Collection[str]) -> ModelProto:
    """The model, unless it would read a stored tensor from a file."""
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL and not (is_mark(tensor) and tensor.name in marks):
            raise ClassifierError(f"the kept graph reads {tensor.name!r} from a file", model.graph.name)
    return model


def front_shelf() -> Shelf | None:
    """Where the graphs are kept; None if the cache is off."""
    folder = cache_folder()
    return None if folder is None else Shelf(folder / FOLDER)


def _key(purifier: Purifier, options: Mapping[str, Any]) -> str | None:
    try:
        return front_key(purifier, options)
    except (Unkeyed, OSError):  # a source file may be gone
        return None


def _packed(graph: bytes, key: str) -> bytes:
    return _head(graph, key) + graph


def _head(graph: bytes, key: str) -> bytes:
    return MAGIC + f" {key} {hashlib.sha256(graph).hexdigest()}\n".encode()


def _unpacked(content: bytes, key: str, accept: Callable[[ModelProto], ModelProto]) -> ModelProto | None:
    """The graph in a file of the cache; None if it is damaged, another's, or not accepted."""
    head, _, graph = content.partition(b"\n")
    if head + b"\n" != _head(graph, key):
        return None
    try:
        return accept(ModelProto.FromString(graph))
    except (DecodeError, ClassifierError):
        return None
