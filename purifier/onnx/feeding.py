"""Values for the inputs of an ONNX classifier that take no images."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ..errors import ConfigError
from ..foreign_code import explained
from .image_input import describe_input

Array: TypeAlias = np.ndarray[Any, Any]
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Feed:
    """What a caller gives for a classifier's other inputs, the same for every image.

    Parameters
    ----------
    values
        Arrays by the names of the inputs.
    per_image
        The inputs with one row per image; a single row stands for all images.
    """

    values: Mapping[str, Array] = field(default_factory=dict)
    per_image: frozenset[str] = frozenset()

    def of(self, count: int) -> dict[str, Array]:
        """The values for ``count`` images.

        Raises
        ------
        ConfigError
            A value has rows for another number of images.
        """
        found = {}
        for name, value in self.values.items():
            repeated = name in self.per_image and len(value) == 1
            found[name] = np.repeat(value, count, axis=0) if repeated else value
            if name in self.per_image and len(found[name]) != count:
                raise ConfigError(
                    f"feed: {name!r} has {len(value)} rows for {count} images; give one row, which is used for all"
                )
        return found


NOTHING = Feed()


def read_feed(model: ModelProto, image: str, given: Mapping[str, Any] | None) -> Feed:
    """Check values for the inputs other than ``image``.

    Raises
    ------
    ConfigError
        There is no such input, or a value does not have its type or shape.
    """
    if given is None:
        return NOTHING
    if not isinstance(given, Mapping):
        raise ConfigError(f"feed: expected a dict from input names to arrays, got {type(given).__name__}")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    batch = _symbols(inputs[image])[:1]
    values, per_image = {}, set()
    for name, value in given.items():
        if name == image or name not in inputs:
            others = ", ".join(describe_input(inputs[other]) for other in inputs if other != image) or "none"
            raise ConfigError(f"feed: the classifier has no other input {name!r}; its other inputs: {others}")
        values[name] = _fitting(inputs[name], value)
        first = _symbols(inputs[name])[:1]
        if first and batch and not isinstance(first[0], int) and (not first[0] or not batch[0] or first == batch):
            per_image.add(name)
    return Feed(values, frozenset(per_image))


def check_fed(inputs: Sequence[Any], image: str, feed: Feed) -> None:
    """Raise ``ConfigError`` if a session has inputs for which there is neither an image nor a value."""
    missing = [value for value in inputs if value.name not in (image, *feed.values)]
    if missing:
        listed = ", ".join(f"{value.name} {value.type} {value.shape}" for value in missing)
        raise ConfigError(
            f"the classifier needs more than images: {listed}; give values with feed={{{missing[0].name!r}: array}} "
            f"(--feed {missing[0].name}=file.npy on the command line)"
        )


def example_values(inputs: Sequence[Any], given: Collection[str], count: int) -> dict[str, Array]:
    """Values for a session's inputs that are not given, with which a difference shows: none is 0.

    Floats are from 0.5 to 1.5, whole numbers 1, booleans true. A free first size is the batch size, other free sizes
    are 1.

    Raises
    ------
    ConfigError
        An input takes no numbers.
    """
    feed: dict[str, Array] = {}
    for value in inputs:
        if value.name in given:
            continue
        if value.type not in NUMPY_TYPES:
            raise ConfigError(
                f"cannot fill in the classifier's input {value.name!r} of {value.type}; give its value with "
                f"feed={{{value.name!r}: array}} (--feed {value.name}=file.npy on the command line)"
            )
        sizes = [size if isinstance(size, int) else 1 for size in value.shape]
        if value.shape and not isinstance(value.shape[0], int):
            sizes[0] = count
        dtype = np.dtype(NUMPY_TYPES[value.type])
        generator = np.random.default_rng(zlib.crc32(value.name.encode()))
        values = generator.uniform(0.5, 1.5, sizes) if np.issubdtype(dtype, np.floating) else np.ones(sizes)
        feed[value.name] = np.asarray(values, dtype=dtype)
    return feed


def _fitting(input: ValueInfoProto, value: Any) -> Array:
    with explained(f"feed: {input.name!r}: expected an array, got {type(value).__name__}", ConfigError):
        found = np.asarray(value)
    kind, sizes = input.type.tensor_type, _symbols(input)
    text = kind.elem_type == TensorProto.STRING
    wanted = np.dtype(object) if text else np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    fits = found.dtype.kind in "UO" if text else np.can_cast(found.dtype, wanted, "same_kind")
    shaped = not kind.HasField("shape") or (
        found.ndim == len(sizes)
        and all(not isinstance(size, int) or size == got for size, got in zip(sizes, found.shape, strict=True))
    )
    if not (fits and shaped):
        raise ConfigError(f"feed: expected {describe_input(input)}, got {found.dtype} {found.shape}")
    return found.astype(wanted)


def _symbols(value: ValueInfoProto) -> list[int | str]:
    """The declared sizes; a name, which may be empty, for free ones."""
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in value.type.tensor_type.shape.dim]
