"""Load classifiers from MODEL specs."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn

from ..contracts.checkpoint import read_tensors
from ..errors import ClassifierError, FileError, SpecError
from ..foreign_code import explained, first_line
from ..onnx.reader import load_onnx
from ..torch_tools.freezing import evaluating


def load_classifier(spec: str | Path, *, weights: str | Path | None = None) -> nn.Module | ModelProto:
    """Load a torch module in evaluation mode, or an ONNX model.

    Parameters
    ----------
    spec
        ``file.onnx``, ``file.pt2`` (torch.export), ``package.module:factory`` or ``demo``.
    weights
        A state dict for ``package.module:factory``: safetensors, or ``.pt`` read with ``weights_only``.

    Raises
    ------
    SpecError, ClassifierError
        The spec is none of these, the file is damaged, or the weights do not fit.
    """
    text = str(spec)
    if text == "demo" and weights is None:
        return load_classifier("purifier.assets.classifier:demo_classifier")
    if weights is not None and (":" not in text or Path(text).suffix in (".onnx", ".pt2")):
        raise SpecError(f"--weights needs package.module:factory, got {text!r}, which has its own weights", text)
    if text.endswith((".onnx", ".ort")):  # load_onnx says what an .ort file is
        return load_onnx(text)
    if text.endswith(".pt2"):
        return _load_exported(Path(text))
    if ":" not in text:
        raise SpecError(
            f"cannot read MODEL {text!r}: expected file.onnx, file.pt2, package.module:factory or demo", text
        )
    module = _call_factory(text)
    if weights is not None:
        _load_weights(module, Path(weights))
    return evaluating(module)


WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def _call_factory(spec: str) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with explained(
        f"MODEL {spec!r} failed",
        partial(ClassifierError, path=spec),
        passing=lambda error: isinstance(error, FileError),
    ):
        made = getattr(importlib.import_module(module_name), attribute)
        made = made if isinstance(made, nn.Module) else made()
    if not isinstance(made, nn.Module):
        raise ClassifierError(f"MODEL {spec!r}: expected a torch.nn.Module, got {type(made).__name__}", spec)
    return made


def _load_weights(module: nn.Module, path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".bin") and path.is_file():
        with explained(
            f"{path} cannot be read as plain weights",
            partial(ClassifierError, path=path),
            "save a state_dict, preferably as safetensors",
            describe=_unreadable,
        ):
            state = torch.load(path, map_location="cpu", weights_only=True)
    else:
        state, _ = read_tensors(path)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ClassifierError(f"{path} does not fit {type(module).__name__}: {error}", path) from error


def _load_exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise ClassifierError(f"no file {path}; expected a .pt2 made by torch.export.save", path)
    failure = f"{path} cannot be read by torch.export.load"
    with explained(failure, partial(ClassifierError, path=path), "export it again", describe=first_line):
        _check_no_objects(path)
        with _weights_only():
            return torch.export.load(os.fspath(path)).module()


def _check_no_objects(path: Path) -> None:
    """Check that all constants are tensors, because others would be unpickled."""
    for name in zipfile.ZipFile(path).namelist():
        _, inside, constant = name.partition("data/constants/")
        if inside and not re.fullmatch(r"tensor_\d+|\w+\.(json|pt)", constant):
            raise ValueError(f"expected only tensors, got the object {constant!r}")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Forbid unpickling: torch would otherwise unpickle any part of a .pt2 that does not load as plain weights."""
    before, logger = os.environ.get(WEIGHTS_ONLY), logging.getLogger("torch.export")
    level = logger.level
    os.environ[WEIGHTS_ONLY] = "1"
    logger.setLevel(logging.CRITICAL)  # a failure raises an exception; the log would repeat it with a traceback
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _unreadable(error: BaseException) -> str:
    # Torch's own message advises unpickling anyway.
    return "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else first_line(error)
