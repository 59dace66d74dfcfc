"""ONNX classifiers that answer with a class and nothing else: its number or its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from ..errors import ClassifierError
from ..foreign_code import Attempt
from ..output import Output
from .folding import Folded
from .rejection import answer_name
from .skeleton import inlined_skeleton

PASSING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change the form of a label, not its value."""
VALUES = (
    *("values_strings", "values_int64s", "classes_strings"),  # LabelEncoder
    *("classlabels_strings", "classlabels_int64s", "classlabels_ints"),  # classifiers of ai.onnx.ml
)


class Labels:
    """The output of a classifier that names a class for each image, and all classes that it can name.

    Raises
    ------
    ClassifierError
        There is no such output, or the file does not say what classes there are.
    """

    def __init__(self, model: ModelProto, output: Output) -> None:
        self.name = answer_name(model, output)
        self.classes = _classes(model, self.name)
        self.as_logits = Output(self.name)
        """Finds what ``logits`` makes of the output."""

    def logits(self, labels: Any) -> Tensor:
        """Labels (N,) or (N, 1), numbers or strings -> float32 (N, K): 1 for the class that is named, else -1.

        Raises
        ------
        ClassifierError
            A label is none of the classes.
        """
        places = {name: place for place, name in enumerate(self.classes)}
        given = [value.item() if isinstance(value, np.generic) else value for value in np.asarray(labels).reshape(-1)]
        unknown = [label for label in given if label not in places]
        if unknown:
            raise ClassifierError(
                f"the classifier answers {unknown[0]!r}, which is none of the {len(places)} classes that its file "
                "declares; give an output with logits (--output)",
                "",
            )
        indices = torch.tensor([places[label] for label in given], dtype=torch.int64)
        # Not 0 and 1, which an audit would take for probabilities.
        return 2 * torch.nn.functional.one_hot(indices, len(places)).float() - 1


def as_tensors(found: Mapping[str, Any], labels: Labels | None, rows: int | None = None) -> dict[str, Any]:
    """A graph's outputs with floats and booleans as tensors, labels as ``logits``, and anything else as it is.

    ``rows``, if given, is the number of rows to keep.
    """
    made: dict[str, Any] = {}
    for name, value in found.items():
        kept = value[:rows] if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim) else value
        if labels is not None and name == labels.name:
            made[name] = labels.logits(kept)
        elif isinstance(kept, np.ndarray) and (np.issubdtype(kept.dtype, np.floating) or kept.dtype == np.bool_):
            made[name] = torch.from_numpy(kept)
        else:
            made[name] = kept
    return made


def _classes(model: ModelProto, name: str) -> list[Any]:
    """All values that a label can have, in the order of the classes."""
    bare = inlined_skeleton(model)
    makers = {output: node for node in bare.graph.node for output in node.output}
    node = makers.get(name)
    while node is not None and node.op_type in PASSING:
        node = makers.get(node.input[0])
    if node is not None:
        attributes = _attributes(node)
        named = next((list(attributes[key]) for key in VALUES if attributes.get(key)), None)
        if named is not None:
            texts = [value.decode() if isinstance(value, bytes) else value for value in named]
            return _in_order(texts, attributes.get("keys_int64s"))
        if node.op_type in ("ArgMax", "TopK"):
            shape = Folded(bare).shapes.get(node.input[0])
            axis = attributes.get("axis", 0 if node.op_type == "ArgMax" else -1)
            if shape is not None and -len(shape) <= axis < len(shape):
                return list(range(shape[axis]))
    raise ClassifierError(
        f"the file does not say which classes its output {name!r} can name: expected an ArgMax, a LabelEncoder or a "
        "classifier of ai.onnx.ml at its end; give an output with logits or probabilities (--output)",
        model.graph.name,
    )


def _in_order(names: list[Any], keys: Any) -> list[Any]:
    """Names sorted by the class numbers that stand for them, if these are all of 0 to K - 1."""
    if keys is None or sorted(keys) != list(range(len(names))):
        return names
    return [name for _, name in sorted(zip(keys, names, strict=True), key=lambda pair: int(pair[0]))]


def _attributes(node: NodeProto) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        with Attempt():  # one of a type that onnx does not know says nothing about classes
            found[attribute.name] = helper.get_attribute_value(attribute)
    return found
