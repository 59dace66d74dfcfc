"""Classifiers of torchvision, timm and Hugging Face by name, with their own weights and preprocessing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.pixels import Preprocessing
from ..data.preprocessing import read_preprocessing
from ..errors import ClassifierError, SpecError
from ..foreign_code import explained, first_line
from .weights import load_weights, read_weights, state_for, weights_only

OTHERWISE = "give a file with weights= (--weights), or random_weights=True (--random-weights) for a trial"
WITH_TRANSFORM_INPUT = ("googlenet", "inception_v3")
"""Models of torchvision that normalise once more inside if their weights are torchvision's."""


class _Wanted(NamedTuple):
    """What a MODEL spec of a library asks for."""

    spec: str
    name: str
    file: Path | None
    random: bool

    @property
    def own_weights(self) -> bool:
        """Whether the library's own weights are wanted."""
        return self.file is None and not self.random

    def error(self, message: str) -> ClassifierError:
        return ClassifierError(f"MODEL {self.spec!r}: {message}", self.spec)

    def library(self, package: str, extra: str) -> Any:
        """Import an optional package."""
        try:
            return importlib.import_module(package)
        except ImportError as error:
            if error.name != package:
                raise self.error(f"the package {package} cannot be imported ({error}); install it again") from error
            raise self.error(
                f"expected the package {package}, which is not installed; install it with pip install "
                f"'adversarial-purifier[{extra}]'"
            ) from error


def library_classifier(
    library: str, name: str, *, weights: Path | None, random_weights: bool, preprocessing: Any = None
) -> tuple[nn.Module, Any]:
    """A classifier of a library, and how it wants its images: ``preprocessing``, or what the library says.

    Parameters
    ----------
    library
        A key of ``LIBRARIES``.
    name
        Its name there: ``resnet18`` or ``resnet18@IMAGENET1K_V1`` (torchvision), ``resnet18`` or ``resnet18.a1_in1k``
        (timm), a folder that ``save_pretrained`` wrote (hf).
    weights
        A file of weights; by default the library's own, which it may have to download.
    random_weights
        Leave the weights random, the same each time.

    Raises
    ------
    SpecError, ClassifierError
        There is no such classifier, its weights cannot be loaded, or it says nothing about its images.
    """
    spec = f"{library}:{name}"
    if not name:
        raise SpecError(f"cannot read MODEL {spec!r}: expected {', '.join(FORMS)}", spec)
    if weights is not None and random_weights:
        raise SpecError(
            f"MODEL {spec!r}: expected weights= (--weights) or random_weights=True (--random-weights), got both; leave "
            "one out",
            spec,
        )
    wanted = _Wanted(spec, name, weights, random_weights)
    failure = f"MODEL {spec!r} failed"
    with explained(failure, partial(ClassifierError, path=spec), describe=_cause), weights_only():
        module, said = LIBRARIES[library](wanted)
    if not isinstance(module, nn.Module):
        raise wanted.error(f"expected a torch.nn.Module, got {type(module).__name__}")
    return module, said() if preprocessing is None else preprocessing


def _torchvision(wanted: _Wanted) -> tuple[nn.Module, Callable[[], Preprocessing]]:
    from torchvision import models

    name, at, version = wanted.name.partition("@")
    if at and not wanted.own_weights:
        raise wanted.error(
            f"expected no weights after @ beside weights= (--weights) or random_weights=True (--random-weights), "
            f"got {version!r}"
        )
    if name not in models.list_models():
        raise wanted.error(f"torchvision has no model {name!r}; torchvision.models.list_models() lists them")
    known = models.get_model_weights(name)
    names = [one.name for one in known]
    version = version.rpartition(".")[2] if at else "DEFAULT"  # also ResNet18_Weights.IMAGENET1K_V1
    if version not in known.__members__:
        raise wanted.error(f"expected one of the weights {', '.join(names) or 'none'} after @, got {version!r}")
    described = known[version]
    if type(described.transforms()).__name__ != "ImageClassification":
        raise wanted.error("expected a classifier of images, got a model for another task")
    if wanted.file is not None and name.removeprefix("quantized_") in WITH_TRANSFORM_INPUT:
        raise wanted.error(
            "expected weights by name after @, because a file does not say whether the model was trained with "
            "transform_input; give package.module:factory, which sets it"
        )
    advice = f"download {described.url} into {torch.hub.get_dir()}/checkpoints, or {OTHERWISE}"
    build = partial(models.get_model, name, weights=described if wanted.own_weights else None)
    module = _built(wanted, build, f"its weights {described}", advice, build)
    return module, lambda: read_preprocessing(described)


def _timm(wanted: _Wanted) -> tuple[nn.Module, Callable[[], Preprocessing]]:
    timm = wanted.library("timm", "timm")
    if ":" not in wanted.name:  # with a colon, it names a folder or a repository: local-dir:FOLDER
        if not timm.is_model(wanted.name):
            raise wanted.error(f"timm has no model {wanted.name!r}; timm.list_models(pretrained=True) lists them")
        described = timm.get_pretrained_cfg(wanted.name)
        if wanted.own_weights and not (described and described.has_weights):  # timm would leave them random
            raise wanted.error(f"timm has no weights for {wanted.name!r}; {OTHERWISE}")
    build = partial(timm.create_model, wanted.name, pretrained=wanted.own_weights)
    advice = f"fetch them where there is a network, into HF_HOME, or {OTHERWISE}"
    module = _built(wanted, build, "its weights", advice, build)
    return module, lambda: read_preprocessing(timm.data.resolve_data_config({}, model=module))


def _hugging_face(wanted: _Wanted) -> tuple[nn.Module, Callable[[], Preprocessing]]:
    transformers = wanted.library("transformers", "hf")
    folder = Path(wanted.name)
    if not (folder / "config.json").is_file():
        raise wanted.error(
            f"expected a folder with config.json, as save_pretrained writes it, got {wanted.name!r}; for a model on "
            "the hub, run hf download NAME --local-dir FOLDER first"
        )
    local = {"local_files_only": True, "trust_remote_code": False}  # code from the folder is never run

    def build() -> nn.Module:
        kind = transformers.AutoModelForImageClassification
        if not wanted.own_weights:
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            fresh: nn.Module = kind.from_config(config, trust_remote_code=False)
            return fresh.float()
        module: nn.Module
        module, facts = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **local)
        lost = [*facts["missing_keys"], *(entry[0] for entry in facts["mismatched_keys"])]
        if lost:  # transformers would leave them random
            raise wanted.error(
                f"the folder's weights lack {', '.join(sorted(lost)[:5])} ({len(lost)} in all) of "
                f"{type(module).__name__}; give the folder of a fine-tuned classifier, or {OTHERWISE}"
            )
        return module

    def said() -> Preprocessing:
        failure = f"MODEL {wanted.spec!r}: its image processor cannot be read"
        make = partial(ClassifierError, path=wanted.spec)
        advice = "say how it wants its images with --preprocessing (preprocessing=)"
        with explained(failure, make, advice, passing=lambda _: False, describe=_cause):
            return read_preprocessing(transformers.AutoImageProcessor.from_pretrained(folder, **local))

    return _built(wanted, build, "the folder's weights", f"copy the folder again, or {OTHERWISE}"), said


def _built(
    wanted: _Wanted,
    build: Callable[[], nn.Module],
    what: str,
    advice: str,
    resized: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """A module with the wanted weights.

    ``what`` and ``advice`` describe the library's own, which ``build`` loads; ``resized`` takes ``num_classes``.
    """
    failure = (
        f"MODEL {wanted.spec!r}: {what} cannot be loaded" if wanted.own_weights else f"MODEL {wanted.spec!r} failed"
    )
    make = partial(ClassifierError, path=wanted.spec)
    said = advice if wanted.own_weights else ""
    with explained(failure, make, said, describe=_cause), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a trial with random weights can be repeated
        module = build()
        if wanted.file is None:
            return module
        found = read_weights(wanted.file)
        state = state_for(module, found, wanted.file)
        classes = None if resized is None else _classes_of(module, state)
        if classes is not None and resized is not None:
            module = resized(num_classes=classes)
        load_weights(module, state, wanted.file)
        return module


def _cause(error: BaseException) -> str:
    """Without its place, which is inside the library."""
    return f"{type(error).__name__}: {first_line(error)}"


def _classes_of(module: nn.Module, state: Mapping[str, Any]) -> int | None:
    """The number of classes of fine-tuned weights, if nothing but the head has another size; else None."""
    own = module.state_dict()
    if set(own) != set(state):
        return None
    different = [name for name, value in own.items() if state[name].shape != value.shape]
    counts = {state[name].shape[:1] for name in different}
    if len(counts) != 1 or next(reversed(own)) not in different:
        return None
    return None if any(state[name].shape[1:] != own[name].shape[1:] for name in different) else counts.pop()[0]


LIBRARIES = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
FORMS = ("torchvision:NAME", "timm:NAME", "hf:FOLDER")
