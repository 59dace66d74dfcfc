"""A key for everything that decides a purifier's ONNX graph: its code, weights, attributes and options."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .loaded_code import KNOWN, Unkeyed, hash_of_code

FORMAT = 1
"""Of keys and of the files kept under them."""
VERSIONS = ("adversarial-purifier", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout)
DEEPEST = 20
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
IGNORED = {"provenance"}
"""Attributes that the graph does not depend on."""


def front_key(purifier: nn.Module, options: Mapping[str, Any]) -> str:
    """A hash, in hexadecimal, that changes with whatever may change the graph.

    It covers the purifier's class and those of its parts, with all source files of their packages; its config, weights,
    buffers and other attributes; ``options``; and the versions of the libraries that write the graph.

    Raises
    ------
    Unkeyed
        There may be something else that decides: code that is no file, or not as it was read (a notebook, an editor at
        work); hooks; attributes that are no plain values.
    """
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(json.dumps(values).encode() + b"\n")

    modules = {__name__}
    add(FORMAT, list(sys.version_info[:2]), str(torch.get_default_dtype()), _versions())
    add(_described(dict(options), modules), _described(purifier, modules))
    add(hash_of_code(modules))
    return digest.hexdigest()


@functools.cache
def _versions() -> list[str]:
    return [*(importlib.metadata.version(name) for name in VERSIONS), torch.__version__]


def _attributes(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """What an instance holds besides its tensors and parts, which may differ between instances of a class."""
    if part._forward_hooks or part._forward_pre_hooks:
        raise Unkeyed(f"{type(part).__name__} has hooks")
    for name, value in sorted(vars(part).items()):
        if name not in OF_EVERY_MODULE and name not in IGNORED:
            yield name, value


def _described(value: Any, modules: set[str], depth: int = 0) -> Any:
    """A value as JSON that differs if the value does; what modules it needs the code of is added to ``modules``."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, PLAIN):  # a subclass can be an Enum
        return [name, repr(value)]
    if issubclass(kind, Tensor):
        return _of_tensor(value)
    if depth > DEEPEST:
        raise Unkeyed(f"a {name} holds others too deep, or itself")
    describe = functools.partial(_described, modules=modules, depth=depth + 1)
    if kind in (tuple, list, torch.Size):
        return [name, [describe(one) for one in value]]
    if kind in (set, frozenset):
        return [name, sorted(json.dumps(describe(one)) for one in value)]
    if isinstance(value, nn.Module):
        return [name, _of_parts(value, modules, depth)]
    if kind in (dict, OrderedDict):
        return [name, [[describe(key), describe(one)] for key, one in value.items()]]
    own = _modules_of(kind)
    if not own or not hasattr(value, "__dict__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        raise Unkeyed(f"a {name} is no plain value")
    modules |= own
    return [name, [[key, describe(one)] for key, one in sorted(vars(value).items())]]


def _of_parts(module: nn.Module, modules: set[str], depth: int) -> list[Any]:
    """A module and all modules inside it: their classes, attributes and tensors."""
    found: list[Any] = []
    for name, part in module.named_modules(remove_duplicate=False):
        modules |= _modules_of(type(part))
        attributes = [[key, _described(one, modules, depth + 1)] for key, one in _attributes(part)]
        tensors = [
            [key, None if tensor is None else _of_tensor(tensor)]
            for key, tensor in (*part._parameters.items(), *part._buffers.items())
        ]
        found.append([name, type(part).__module__, type(part).__qualname__, attributes, tensors])
    return found


def _of_tensor(tensor: Tensor) -> list[Any]:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not plain or tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        raise Unkeyed(f"a tensor of the type {type(tensor).__name__}, {tensor.layout}, on {tensor.device}")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    content = hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()
    return [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), content]


def _modules_of(cls: type) -> set[str]:
    """The names of the Python modules that hold the code of a class, of its bases, and of what was put into them."""
    found = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in KNOWN:
            continue
        if "<locals>" in base.__qualname__:
            raise Unkeyed(f"{base.__qualname__} is made by a function, with variables of its own")
        found.add(base.__module__)
        for value in vars(base).values():
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and function.__module__ != base.__module__:
                if "<locals>" in function.__qualname__:
                    raise Unkeyed(f"{function.__qualname__} is made by a function, with variables of its own")
                found.add(str(function.__module__))
    return {name for name in found if name.partition(".")[0] not in KNOWN}
