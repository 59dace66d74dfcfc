"""MODEL specs -> a classifier, and any classifier -> logits from pixels."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Mapping
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
    if text == "demo":
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
    return module.eval()


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
        # A torch.export module takes its first argument by position only.
        first = next(iter(inspect.signature(module.forward).parameters), None)
        self.module, self.input = module, 0 if input == first else input
        self.differentiable = preprocessing.dtype != "uint8"

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.preprocessing.to_classifier(pixels)
        output = self.module(**{self.input: images}) if isinstance(self.input, str) else self.module(images)
        return logits_of(output)

    def describe(self) -> str:
        return f"torch {type(self.module).__name__}"


class OnnxPixelClassifier(PixelClassifier):
    """An ONNX model behind its preprocessing, run by ONNX Runtime: logits, no gradients."""

    differentiable = False

    def __init__(self, model: ModelProto, preprocessing: Preprocessing, input: int | str | None = None) -> None:
        super().__init__(preprocessing)
        found = image_input(model, input)
        self.name, self.fixed_batch = found.name, found.shape[0]
        self.session = open_session(model)

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.preprocessing.to_classifier(pixels.detach()).cpu().numpy()
        return torch.from_numpy(np.concatenate([self._run(part) for part in self._parts(images)])).to(pixels.device)

    def describe(self) -> str:
        return "an ONNX model"

    def _run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        padding = self.fixed_batch - len(images) if isinstance(self.fixed_batch, int) else 0
        padded = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)]) if padding else images
        output = self.session.run(None, {self.name: padded})[0]
        return np.asarray(output[: len(images)], dtype=np.float32)

    def _parts(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        size = self.fixed_batch if isinstance(self.fixed_batch, int) else max(len(images), 1)
        return [images[start : start + size] for start in range(0, max(len(images), 1), size)]


def pixel_classifier(
    model: nn.Module | ModelProto, preprocessing: Preprocessing, input: int | str | None = None
) -> PixelClassifier:
    """Any classifier in pixel space; ``input`` is the image's position or parameter name."""
    if isinstance(model, ModelProto):
        return OnnxPixelClassifier(model, preprocessing, input)
    return TorchPixelClassifier(model, preprocessing, input or 0)


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returned: a tensor, or the first of a tuple, dict or dataclass.

    An entry or field called ``logits`` goes before the first.
    """
    found = output
    if dataclasses.is_dataclass(found) and not isinstance(found, type | Mapping):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    if isinstance(found, Mapping):
        found = found["logits"] if "logits" in found else next(iter(found.values()), None)
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ClassifierError(f"the classifier must give logits (N, K), got {got} in {type(output).__name__}", "")
    return found


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
    except Exception as error:
        raise ClassifierError(f"MODEL {spec!r} failed: {type(error).__name__}: {error}", spec) from error
    if not isinstance(made, nn.Module):
        raise ClassifierError(f"MODEL {spec!r}: expected a torch.nn.Module, got {type(made).__name__}", spec)
    return made


def _load_weights(module: nn.Module, path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".bin") and path.is_file():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ClassifierError(
                f"{path} cannot be read as plain weights ({str(error).splitlines()[0]}); "
                "save a state_dict, best as safetensors",
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
        return torch.export.load(os.fspath(path)).module()
    except Exception as error:
        raise ClassifierError(f"{path} cannot be read by torch.export.load: {error}; export it again", path) from error
