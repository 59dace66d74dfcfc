"""Options that several commands share, and the functions that read their values."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import typer

from ..errors import DataError, SpecError
from ..foreign_code import explained
from ..specs import build, split_spec
from ..vocabulary import OutputKind

if TYPE_CHECKING:
    from ..data.pixels import Preprocessing

PREPROCESSING = typer.Option(
    "--preprocessing",
    metavar="KEY=VALUE,...",
    help="How the classifier wants its images: mean, std (one number per channel), scale, layout, dtype, channels; "
    'such as "mean=0.5,0.5,0.5,std=0.25,0.25,0.25" or "scale=255,layout=NHWC"; or imagenet, for its mean and std '
    "(default: the model's own for timm:, torchvision: and hf:, else pixels in [0, 1] or what an ONNX input says).",
)
MODEL = (
    "MODEL: file.onnx, file.pt2, package.module:factory, torchvision:NAME or torchvision:NAME@WEIGHTS, timm:NAME, "
    "hf:FOLDER or demo."
)
WEIGHTS = typer.Option(
    "--weights",
    metavar="FILE",
    help="Weights for package.module:factory, torchvision:NAME, timm:NAME or hf:FOLDER: a state dict, .safetensors, "
    ".pt, .pth, .bin or .ckpt.",
)
RANDOM_WEIGHTS = typer.Option(
    "--random-weights", help="Leave the weights of torchvision:NAME, timm:NAME or hf:FOLDER random, for a trial."
)
IMAGE_SHAPE = typer.Option(
    "--image-shape",
    metavar="CxHxW",
    help="Image shape, such as 3x224x224, if neither purifier nor classifier fixes it.",
)

INPUT = typer.Option(
    "--input",
    metavar="POSITION|NAME",
    help="Input of the classifier that takes the images, such as 1 or pixel_values (default: the first input of a "
    "torch classifier, the only possible input of an ONNX classifier).",
)

OUTPUT = typer.Option(
    "--output",
    metavar="POSITION|NAME",
    help="Output of the classifier that is its answer, such as 1 or prob (default: the one called logits, else the "
    "only one that can be).",
)
OUTPUT_KIND = typer.Option(
    "--output-kind",
    help="What the answer is: (N, K) logits or probabilities, or for two classes one number per image, binary-logit or "
    "binary-probability, of class 1; label: only the class, of an ONNX classifier.",
)


def _raise_limits(context: typer.Context, given: list[str] | None) -> list[str] | None:
    from ..onnx.limits import onnx_limits

    raised = {}
    for text in given or ():
        name, equals, number = text.partition("=")
        if not equals or name not in ONNX_LIMITS or not re.fullmatch(r"inf|\d+(\.\d*)?(e\d+)?", number):
            raise SpecError(
                f"--limit: expected NAME=NUMBER such as loop_steps=1e6, with a NAME of {', '.join(ONNX_LIMITS)}, got "
                f"{text!r}",
                text,
            )
        raised[name] = float(number)
    if raised:
        context.with_resource(onnx_limits(**raised))
    return given


ONNX_LIMITS = ("nodes", "elements", "loop_steps")
LIMIT = typer.Option(
    "--limit",
    metavar="NAME=NUMBER",
    callback=_raise_limits,
    help="Another limit for ONNX files that you trust: nodes, elements or loop_steps; may be repeated. See the "
    "limitations page.",
)


def _switch_cache_off(context: typer.Context, given: bool) -> bool:
    from ..onnx.cache_folder import no_cache

    if given:
        context.with_resource(no_cache())
    return given


NO_CACHE = typer.Option(
    "--no-cache",
    callback=_switch_cache_off,
    help="Export the purifier anew, and keep nothing in the user's cache folder; for an ONNX classifier.",
)


ON_BAD_PIXELS = typer.Option(
    "--on-bad-pixels",
    help="What the guard does with an image that has NaN, infinity or values out of range: raise (in an exported file: "
    "no answer, NaN), reject (with --on-reject flag or abstain) or clamp.",
)
FEED = typer.Option(
    "--feed",
    metavar="NAME=FILE.npy",
    help="Value for another input of an ONNX classifier, the same for every image; may be repeated.",
)


class Reading(TypedDict):
    """How a classifier is read: the arguments that ``guard`` and ``audit`` share."""

    preprocessing: Preprocessing | None
    input: int | str | None
    output: int | str | None
    output_kind: OutputKind
    feed: dict[str, Any] | None


def read_preprocessing_option(text: str | None) -> Preprocessing | None:
    """The value of ``--preprocessing``; None if it was not given."""
    if text is None:
        return None
    from ..data.pixels import Preprocessing
    from ..data.preprocessing import IMAGENET

    if text.strip().lower() == "imagenet":
        return IMAGENET
    # A comma before a number separates numbers (no key begins with a digit); brackets come from pasted lists.
    numbers = re.sub(r"\s*,\s*(?=[-+.\d])", " ", re.sub(r"[\[\]()]", "", text))
    try:
        _, options = split_spec(f"preprocessing:{numbers}")
    except SpecError as error:
        raise SpecError(
            "--preprocessing: expected KEY=VALUE,..., each key once, such as mean=0.5,0.5,0.5,std=0.25,0.25,0.25, or "
            f"imagenet, got {text!r}",
            text,
        ) from error
    return build(Preprocessing, options, what="--preprocessing")


def read_model_options(
    spec: str, weights: Path | None, random_weights: bool, preprocessing: Preprocessing | None
) -> tuple[Any, Preprocessing | None]:
    """The classifier of ``--classifier``, and the value of ``--preprocessing`` or else the classifier's own.

    An ONNX file stays a file name, for messages.
    """
    from ..classifiers.loading import read_classifier

    if spec.endswith((".onnx", ".ort")) and weights is None and not random_weights:
        return spec, preprocessing
    return read_classifier(spec, weights=weights, random_weights=random_weights, preprocessing=preprocessing)


def read_input_option(text: str | None) -> int | str | None:
    """The value of ``--input``, a position if it is a whole number; None if it was not given."""
    return _read_place(text, "--input", "pixel_values")


def read_output_option(text: str | None) -> int | str | None:
    """The value of ``--output``, a position if it is a whole number; None if it was not given."""
    return _read_place(text, "--output", "logits")


def _read_place(text: str | None, option: str, example: str) -> int | str | None:
    if text == "":
        raise SpecError(f"{option}: expected a position such as 1 or a name such as {example}, got nothing", text)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else text


def read_feed_option(given: list[str] | None) -> dict[str, Any] | None:
    """The values of ``--feed``, arrays by input name; None if it was not given."""
    import numpy as np

    found = {}
    for text in given or ():
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise SpecError(f"--feed: expected NAME=FILE.npy, such as gain=gain.npy, got {text!r}", text)
        with explained(f"--feed: {file} cannot be read", partial(DataError, path=file), "save it with numpy.save"):
            found[name] = np.load(file, allow_pickle=False)
    return found or None


def read_image_shape_option(text: str | None) -> tuple[int, int, int] | None:
    """The value of ``--image-shape``; None if it was not given."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text.strip())
    if found is None:
        raise SpecError(f"--image-shape: expected CxHxW such as 1x28x28, got {text!r}", text)
    channels, height, width = map(int, found.groups())
    return channels, height, width


def command_line(context: typer.Context) -> list[str]:
    """The command line that repeats a run, from its parsed options, including defaults."""
    words = ["purifier", context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                words.append(max(parameter.opts, key=len))
            elif one is not None and one is not False:
                words += [max(parameter.opts, key=len), str(one)]
    return words
