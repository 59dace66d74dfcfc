"""Keep the graphs of purifiers in the user's cache folder, because exporting one takes seconds."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..errors import ClassifierError
from .cache_folder import Shelf, cache_folder
from .front import purifier_graph
from .front_key import front_key
from .loaded_code import Unkeyed
from .reader import load_onnx

FOLDER = "fronts"
MAGIC = b"purifier front"


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
    shelf = front_shelf()
    key = None if shelf is None else _key(purifier, preprocessing, options)
    if shelf is None or key is None:
        return purifier_graph(purifier, preprocessing, **options)
    name = f"{key}.front"
    content = shelf.read(name)
    found = None if content is None else _unpacked(content, key)
    if found is None:
        found = purifier_graph(purifier, preprocessing, **options)
        shelf.write(name, _packed(found.SerializeToString(), key))
    return found


def front_shelf() -> Shelf | None:
    """Where the graphs are kept; None if the cache is off."""
    folder = cache_folder()
    return None if folder is None else Shelf(folder / FOLDER)


def _key(purifier: Purifier, preprocessing: Preprocessing, options: dict[str, Any]) -> str | None:
    try:
        return front_key(purifier, {"preprocessing": preprocessing, **options})
    except (Unkeyed, OSError):  # a source file may be gone
        return None


def _packed(graph: bytes, key: str) -> bytes:
    return _head(graph, key) + graph


def _head(graph: bytes, key: str) -> bytes:
    return MAGIC + f" {key} {hashlib.sha256(graph).hexdigest()}\n".encode()


def _unpacked(content: bytes, key: str) -> ModelProto | None:
    """The graph in a file of the cache; None if it is damaged, or another purifier's."""
    head, _, graph = content.partition(b"\n")
    if head + b"\n" != _head(graph, key):
        return None
    try:
        return load_onnx(ModelProto.FromString(graph))
    except (DecodeError, ClassifierError):
        return None
