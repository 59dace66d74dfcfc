"""MODEL specs -> a classifier, and any classifier -> logits from pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from .checkpoint import read_tensors
from .errors import ClassifierError, FileError, SpecError
from .onnx_graph import image_input, load_onnx
from .pixels import Preprocessing
from .runtime import open_session


def load_classifier(spec: str | Path, *, weights: str | Path | None = None) -> nn.Module | ModelProto:
    """A torch module in evaluation mode, or an ONNX model.

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
        raise SpecError(f"--weights goes with package.module:factory, not with {text!r}, which holds its own", text)
    if text.endswith(".onnx"):
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


class PixelClassifier(nn.Module):
    """A classifier as attacks see it: logits (N, K) from pixels (N, C, H, W)."""

    differentiable: bool

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def describe(self) -> str:
        """The classifier in a few words, for reports and errors."""
        raise NotImplementedError


class TorchPixelClassifier(PixelClassifier):
    """A torch module behind its preprocessing."""

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, input: int | str = 0) -> None:
        super().__init__(preprocessing)
        self.module, self.input = module, input
        self.differentiable = preprocessing.dtype != "uint8"

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.preprocessing.to_classifier(pixels)
        try:
            output = self.module(**{self.input: images}) if isinstance(self.input, str) else self.module(images)
        except SystemExit as error:
            raise ClassifierError(
                f"{self.describe()} ended the program (exit {error.code}) when asked; let it raise an error instead", ""
            ) from error
        return _a_row_each(logits_of(output), pixels)

    def describe(self) -> str:
        return f"torch {type(self.module).__name__}"


class OnnxPixelClassifier(PixelClassifier):
    """An ONNX model behind its preprocessing, run by ONNX Runtime: logits, no gradients."""

    differentiable = False

    def __init__(self, model: ModelProto, preprocessing: Preprocessing, input: int | str | None = None) -> None:
        super().__init__(preprocessing)
        found = image_input(model, input)
        self.name, self.fixed_batch = found.name, found.shape[0]
        content = model.SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(content).digest()
        self.session = open_session(content)

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.preprocessing.to_classifier(pixels.detach()).cpu().numpy()
        parts = [self._run(part) for part in self._parts(images)]
        outputs = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
        return _a_row_each(logits_of(outputs), pixels).to(pixels.device, torch.float32)

    def describe(self) -> str:
        return f"an ONNX model on {self.session.get_providers()[0]}"

    def _run(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        padding = self.fixed_batch - len(images) if isinstance(self.fixed_batch, int) else 0
        padded = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)]) if padding else images
        names = [output.name for output in self.session.get_outputs()]
        outputs = self.session.run(None, {self.name: padded})
        return {
            name: value[: len(images)] if len(value) == len(padded) else value
            for name, value in zip(names, outputs, strict=True)
            if isinstance(value, np.ndarray) and value.ndim
        }

    def _parts(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        size = self.fixed_batch if isinstance(self.fixed_batch, int) else max(len(images), 1)
        return [images[start : start + size] for start in range(0, max(len(images), 1), size)]


def pixel_classifier(
    model: nn.Module | ModelProto, preprocessing: Preprocessing, input: int | str | None = None
) -> PixelClassifier:
    """Any classifier in pixel space; ``input`` is the image's position or parameter name."""
    if isinstance(model, ModelProto):
        return OnnxPixelClassifier(model, preprocessing, input)
    return TorchPixelClassifier(model, preprocessing, 0 if input is None else input)


def logits_of(output: Any) -> Tensor:
    """The logits (N, K) in what a classifier returned: a tensor, tuple, dict or dataclass.

    What is called ``logits`` goes first, then the first floats that are (N, K), or (N, K, 1, 1).

    Raises
    ------
    ClassifierError
        There are none.
    """
    found = output
    if dataclasses.is_dataclass(found) and not isinstance(found, type | Mapping):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        parts = [found["logits"]] if "logits" in found else list(found.values())
    else:
        parts = list(found) if isinstance(found, tuple | list) else [found]
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 2 and part.shape[2:].numel() == 1:
            return part.flatten(1)
    got = [f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    raise ClassifierError(f"the classifier must give logits, floats (N, K); it gives {', '.join(got) or 'nothing'}", "")


def _a_row_each(logits: Tensor, pixels: Tensor) -> Tensor:
    if len(logits) != len(pixels):
        raise ClassifierError(
            f"the classifier must give a row of logits for each image, it gives {len(logits)} for {len(pixels)}", ""
        )
    return logits


def are_probabilities(output: Tensor) -> bool:
    """Whether outputs (N, K) are probabilities, softmax's, and no logits."""
    sums = output.float().sum(1)
    return output.shape[1] > 1 and bool(output.amin() >= 0) and bool(((sums - 1).abs() < 1e-3).all())


def evaluating(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode; one of torch.export has its mode baked in and is left as it is."""
    try:
        return module.eval()
    except NotImplementedError:
        for part in module.modules():
            part.training = False
        return module


def _call_factory(spec: str) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        made = getattr(importlib.import_module(module_name), attribute)
        made = made if isinstance(made, nn.Module) else made()
    except FileError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code can fail in any way
        raise ClassifierError(f"MODEL {spec!r} failed: {type(error).__name__}: {error}", spec) from error
    if not isinstance(made, nn.Module):
        raise ClassifierError(f"MODEL {spec!r}: expected a torch.nn.Module, got {type(made).__name__}", spec)
    return made


def _load_weights(module: nn.Module, path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".bin") and path.is_file():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for what it cannot read
            # Torch's own message advises to unpickle all the same.
            reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else _reason(error)
            raise ClassifierError(
                f"{path} cannot be read as plain weights ({reason}); save a state_dict, best as safetensors",
                path,
            ) from error
    else:
        state, _ = read_tensors(path)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ClassifierError(f"{path} does not fit {type(module).__name__}: {error}", path) from error


def _load_exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise ClassifierError(f"no file {path}; expected a .pt2 made by torch.export.save", path)
    try:
        _refuse_objects(path)
        with _weights_only():
            return torch.export.load(os.fspath(path)).module()
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ClassifierError(
            f"{path} cannot be read by torch.export.load: {_reason(error)}; export it again", path
        ) from error


def _refuse_objects(path: Path) -> None:
    """Constants that are no tensors would be unpickled."""
    for name in zipfile.ZipFile(path).namelist():
        _, inside, constant = name.partition("data/constants/")
        if inside and not re.fullmatch(r"tensor_\d+|\w+\.(json|pt)", constant):
            raise ValueError(f"it holds the object {constant!r}, expected tensors only")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Torch unpickles a part of a .pt2 that does not load as plain weights; this switch of torch's forbids it."""
    before, logger = os.environ.get(WEIGHTS_ONLY), logging.getLogger("torch.export")
    level = logger.level
    os.environ[WEIGHTS_ONLY] = "1"
    logger.setLevel(logging.CRITICAL)  # a refusal comes as an exception; the log repeats it with a traceback
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _reason(error: Exception) -> str:
    """An error's first line, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
