"""Which input of an ONNX classifier takes the images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, TensorProto, ValueInfoProto

from ..data.pixels import DTYPES, Preprocessing
from ..errors import ClassifierError, ConfigError

IMAGE_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class ImageInput:
    """The input of an ONNX classifier that takes the images.

    Parameters
    ----------
    name, position
        Its name, and its position among the inputs a caller feeds.
    dtype
        ``float32``, ``float16``, ``float64`` or ``uint8``.
    shape
        Four sizes, as the graph declares them; None if free.
    """

    name: str
    position: int
    dtype: str
    shape: tuple[int | None, ...]


def image_input(model: ModelProto, input: int | str | None = 0) -> ImageInput:
    """Find the input that takes the images.

    Parameters
    ----------
    input
        Its position among the inputs a caller must feed, or its name. None finds the only one that can take
        images: four dimensions, float or uint8.

    Raises
    ------
    ClassifierError
        There is no such input, there are several and none was chosen, or the chosen one cannot take images.
    ConfigError
        ``input`` is neither a position nor a name.
    """
    if isinstance(input, bool) or not isinstance(input, int | str | None):
        raise ConfigError(f"input: expected a position or a name, got {input!r}")
    stored = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in stored]
    candidates = [place for place, value in enumerate(values) if _can_be_image(value)]
    described = [f"{place}: {describe_input(value)}" for place, value in enumerate(values)]
    listed = ", ".join(described) or "there are none"
    if input is None:
        if len(candidates) != 1:
            possible = ", ".join(described[place] for place in candidates)
            raise ClassifierError(
                f"{len(candidates)} of the classifier's inputs can be images: {possible}; "
                "choose one with input= (--input on the command line)"
                if candidates
                else f"none of the classifier's inputs can be images: {listed}; "
                "expected a float or uint8 input, (N, C, H, W) or (N, H, W, C); export the classifier with such an "
                "input, or put a Cast or Reshape in front of it",
                model.graph.name,
            )
        chosen = candidates[0]
    elif isinstance(input, str):
        names = [value.name for value in values]
        if input not in names:
            raise ClassifierError(f"the classifier has no input {input!r}; its inputs: {listed}", model.graph.name)
        chosen = names.index(input)
    else:
        if not 0 <= input < len(values):
            raise ClassifierError(
                f"the classifier has no input at position {input}; its inputs: {listed}", model.graph.name
            )
        chosen = input
    if chosen not in candidates:
        raise ClassifierError(
            f"input: expected float or uint8 images with 4 dimensions, got {describe_input(values[chosen])}; the "
            f"inputs are {listed}",
            model.graph.name,
        )
    value = values[chosen]
    kind = value.type.tensor_type
    shape = _sizes(value) or (None,) * 4
    return ImageInput(value.name, chosen, IMAGE_TYPES[kind.elem_type], shape)


def infer_preprocessing(image: ImageInput) -> Preprocessing:
    """Guess from type and shape: uint8 means 0-255, and 1 or 3 channels only at the end mean NHWC; else pixels."""
    last = image.shape[3] in (1, 3) and image.shape[1] not in (1, 3)
    layout: Literal["NCHW", "NHWC"] = "NHWC" if last else "NCHW"
    return Preprocessing(scale=255.0 if image.dtype == "uint8" else 1.0, layout=layout, dtype=image.dtype)


def preprocessing_for(image: ImageInput, preprocessing: Preprocessing | None) -> Preprocessing:
    """The preprocessing with the dtype of the graph's input, which overrides the default float32."""
    if preprocessing is None:
        return infer_preprocessing(image)
    if preprocessing.dtype not in ("float32", image.dtype):
        raise ConfigError(
            f"preprocessing: expected dtype={image.dtype}, which the classifier's input {image.name!r} takes, got "
            f"{preprocessing.dtype}; leave dtype out of preprocessing="
        )
    assert image.dtype in DTYPES
    return dataclasses.replace(preprocessing, dtype=image.dtype)


def describe_input(value: ValueInfoProto) -> str:
    """``name float32 (N, 3, 32, 32)``, for messages."""
    kind = value.type.tensor_type
    sizes = [str(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")) for d in kind.shape.dim]
    names = {int(number): name.lower() for name, number in TensorProto.DataType.items()}
    type_name = IMAGE_TYPES.get(kind.elem_type) or names.get(kind.elem_type, "unknown")
    return f"{value.name} {type_name} ({', '.join(sizes)})"


def _can_be_image(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in IMAGE_TYPES and (not kind.HasField("shape") or len(kind.shape.dim) == 4)


def _sizes(value: ValueInfoProto) -> tuple[int | None, ...]:
    """The declared sizes; None for symbols and sizes that are not positive."""
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)
