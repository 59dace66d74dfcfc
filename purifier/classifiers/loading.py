"""Load classifiers from MODEL specs."""

from __future__ import annotations

import importlib
import os
import re
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from ..data.pixels import Preprocessing
from ..errors import ClassifierError, ConfigError, FileError, SpecError
from ..foreign_code import explained, first_line
from ..onnx.reader import load_onnx
from ..torch_tools.freezing import evaluating
from .libraries import FORMS as LIBRARY_FORMS
from .libraries import LIBRARIES, library_classifier
from .weights import load_weights, read_weights, state_for, weights_only

FORMS = f"file.onnx, file.pt2, package.module:factory, {', '.join(LIBRARY_FORMS)} or demo"


def load_classifier(
    spec: str | Path, *, weights: str | Path | None = None, random_weights: bool = False
) -> nn.Module | ModelProto:
    """Load a torch module in evaluation mode, or an ONNX model; see ``read_classifier``."""
    model, _ = read_classifier(spec, weights=weights, random_weights=random_weights, preprocessing=Preprocessing())
    return model


def read_classifier(
    spec: str | Path, *, weights: str | Path | None = None, random_weights: bool = False, preprocessing: Any = None
) -> tuple[nn.Module | ModelProto, Any]:
    """Load a classifier, and say how it wants its images.

    Parameters
    ----------
    spec
        ``file.onnx``, ``file.pt2`` (torch.export), ``package.module:factory``, ``torchvision:NAME[@WEIGHTS]``,
        ``timm:NAME``, ``hf:FOLDER`` or ``demo``. These prefixes are never packages; ``timm.models:resnet18`` is one.
    weights
        A state dict for all but files and ``demo``: safetensors, or torch's (``.pt``, ``.pth``, ``.bin``, ``.ckpt``)
        read with ``weights_only``. It may lie in ``{"state_dict": ...}`` or ``{"model": ...}``, and all keys may begin
        with ``module.``, ``_orig_mod.`` or ``model.``.
    random_weights
        Leave the weights of a library's classifier random; without weights and this it has its own.
    preprocessing
        As for ``purifier.guard``; None for what a library's classifier says itself.

    Returns
    -------
    A torch module in evaluation mode or an ONNX model, and ``preprocessing``, or if that is None, the library's. It
    stays None if the classifier is of no library.

    Raises
    ------
    ConfigError
        ``weights`` is no name, or ``random_weights`` is no bool.
    SpecError, ClassifierError
        The spec is none of these, the file is damaged, the weights do not fit, or cannot be downloaded.
    """
    if weights is not None and not isinstance(weights, str | Path):
        raise ConfigError(
            f"weights: expected the name of a file, got {type(weights).__name__}; load other weights into the module, "
            "and give that"
        )
    if not isinstance(random_weights, bool):
        raise ConfigError(f"random_weights must be True or False, got {random_weights!r}")
    text = str(spec)
    library, colon, name = text.partition(":")
    if colon and library in LIBRARIES:
        file = None if weights is None else Path(weights)
        module, wanted = library_classifier(
            library, name, weights=file, random_weights=random_weights, preprocessing=preprocessing
        )
        return evaluating(module), wanted
    if random_weights:
        raise SpecError(
            f"random_weights=True (--random-weights) needs {', '.join(LIBRARY_FORMS)}, got {text!r}; leave it out", text
        )
    if text == "demo" and weights is None:
        return read_classifier("purifier.assets.classifier:demo_classifier", preprocessing=preprocessing)
    if weights is not None and (not colon or Path(text).suffix in (".onnx", ".pt2")):
        raise SpecError(
            f"weights= (--weights) needs package.module:factory, {', '.join(LIBRARY_FORMS)}, got {text!r}, which has "
            "its own weights; leave them out",
            text,
        )
    if is_onnx_file(text):
        return load_onnx(text), preprocessing
    if text.endswith(".pt2"):
        return _load_exported(Path(text)), preprocessing
    if not colon:
        raise SpecError(f"cannot read MODEL {text!r}: expected {FORMS}", text)
    module = _call_factory(text)
    if weights is not None:
        load_weights(module, state_for(module, read_weights(Path(weights)), Path(weights)), Path(weights))
    return evaluating(module), preprocessing


def is_onnx_file(spec: str | Path) -> bool:
    """Whether a MODEL spec names an ONNX file, which may not exist."""
    text = str(spec)
    library, colon, _ = text.partition(":")
    return text.endswith((".onnx", ".ort")) and not (colon and library in LIBRARIES)  # load_onnx says what an .ort is


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


def _load_exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise ClassifierError(f"no file {path}; expected a .pt2 made by torch.export.save", path)
    failure = f"{path} cannot be read by torch.export.load"
    with explained(failure, partial(ClassifierError, path=path), "export it again", describe=first_line):
        _check_no_objects(path)
        with weights_only():
            return torch.export.load(os.fspath(path)).module()


def _check_no_objects(path: Path) -> None:
    """Check that all constants are tensors, because others would be unpickled."""
    for name in zipfile.ZipFile(path).namelist():
        _, inside, constant = name.partition("data/constants/")
        if inside and not re.fullmatch(r"tensor_\d+|\w+\.(json|pt)", constant):
            raise ValueError(f"expected only tensors, got the object {constant!r}")
