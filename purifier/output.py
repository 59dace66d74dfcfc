"""Which of a classifier's outputs is its answer, of what kind it is, and how it becomes logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from .errors import ClassifierError, ConfigError
from .vocabulary import OutputKind

RANGE_ROUNDING, SUM_ROUNDING = 1e-3, 1e-2
"""How far probabilities may lie outside [0, 1], and their sum from 1; both are rounding in half precision."""
MOST_SHOWN = 5
"""How many outputs without a tensor are listed: a list of lists has one for each image."""
SHAPES = {
    "logits": "logits, floats (N, K)",
    "probabilities": "probabilities, floats (N, K)",
    "binary-logit": "one logit per image, floats (N,) or (N, 1)",
    "binary-probability": "one probability per image, floats (N,) or (N, 1)",
}


@dataclass(frozen=True)
class Entry:
    """One of a classifier's outputs, as far as it is known without its values."""

    name: str | None
    floating: bool
    shape: tuple[int | None, ...] | None
    """None if unknown, as a size can be."""
    text: str
    """Type and shape, for messages."""


@dataclass(frozen=True)
class Output:
    """The output that is a classifier's answer, and its kind.

    Parameters
    ----------
    which
        Its position or name in a tuple, dict, dataclass or ONNX graph. None: the one called ``logits``
        (``probabilities`` if that is the kind), else the only one that can be an answer of this kind.
    kind
        ``logits``: (N, K) for K of 2 or more. ``probabilities``: (N, K), rows that sum to 1. ``binary-logit``: (N,) or
        (N, 1), class 1 if above 0. ``binary-probability``: (N,) or (N, 1), the probability of class 1. All may have
        further dimensions of size 1.

    Raises
    ------
    ConfigError
        ``which`` is neither a position nor a name, or ``kind`` is unknown.
    """

    which: int | str | None = None
    kind: OutputKind = "logits"

    def __post_init__(self) -> None:
        if isinstance(self.which, bool) or not isinstance(self.which, int | str | None) or self.which == "":
            raise ConfigError(f"output: expected a position or a name, got {self.which!r}")
        if isinstance(self.which, int) and self.which < 0:
            raise ConfigError(f"output: expected a position of 0 or more, got {self.which}")
        if self.kind not in get_args(OutputKind):
            raise ConfigError(f"output_kind must be one of {', '.join(get_args(OutputKind))}, got {self.kind!r}")

    @property
    def binary(self) -> bool:
        """Whether the answer is one number per image."""
        return self.kind.startswith("binary-")

    @property
    def log_scale(self) -> bool:
        """Whether the answer holds logits, not probabilities."""
        return self.kind in ("logits", "binary-logit")

    def describe(self) -> str:
        """``, output 'prob' as binary-probability`` for descriptions of a classifier; nothing by default."""
        if self == LOGITS:
            return ""
        return (", output" if self.which is None else f", output {self.which!r}") + f" as {self.kind}"

    def find(self, output: Any) -> Tensor:
        """The answer, as the classifier gives it, in its output: a tensor, tuple, list, dict or dataclass.

        Raises
        ------
        ClassifierError
            There is none, there are several and ``which`` is None, or it does not have the shape of its kind.
        """
        parts = _parts(output)
        found: Tensor = parts[self.choose([_entry(name, value) for name, value in parts])][1]
        return found

    def logits(self, output: Any) -> Tensor:
        """Logits (N, K) from a classifier's output; see ``find`` and ``to_logits`` for errors."""
        return self.to_logits(self.find(output))

    def to_logits(self, answer: Tensor) -> Tensor:
        """The result of ``find`` as logits (N, K), differentiable and in the same dtype.

        Probabilities become their logarithms; 0 counts as the smallest normal number and, if binary, 1 as the number
        before it. A binary answer z becomes (0, z), and p becomes (log(1 - p), log p).

        Raises
        ------
        ClassifierError
            Probabilities are not in [0, 1], or their rows do not sum to 1.
        """
        if not self.log_scale:
            self._check_probabilities(answer)
        if self.kind == "logits":
            return answer.flatten(1)
        limits = torch.finfo(answer.dtype)
        if self.kind == "probabilities":
            return answer.flatten(1).clamp_min(limits.tiny).log()
        column = answer.flatten()
        if self.kind == "binary-logit":
            return torch.stack([torch.zeros_like(column), column], 1)
        column = column.clamp(limits.tiny, 1 - limits.eps / 2)
        return torch.stack([torch.log1p(-column), column.log()], 1)

    def choose(self, entries: Sequence[Entry]) -> int:
        """The position of the answer among a classifier's outputs.

        Raises
        ------
        ClassifierError
            As for ``find``.
        """
        shown = _shown(entries)
        place = self._chosen(entries, shown)
        entry = entries[place]
        if not self._fits(entry):
            other = "choose another output with output= (--output), or " if len(entries) > 1 else ""
            raise ClassifierError(
                f"the classifier must return {SHAPES[self.kind]}, got {shown[place]}; {other}if the answer is of "
                "another kind, give output_kind= (--output-kind on the command line)",
                "",
            )
        if not self.binary and entry.shape is not None and (len(entry.shape) == 1 or entry.shape[1] == 1):
            raise ClassifierError(
                f"the classifier must return {SHAPES[self.kind]}, for 2 or more classes, got one number per image, "
                f"{shown[place]}; if it is the answer of a two-class classifier, give its kind: "
                "output_kind='binary-logit' or 'binary-probability' (--output-kind on the command line)",
                "",
            )
        return place

    def _chosen(self, entries: Sequence[Entry], shown: Sequence[str]) -> int:
        names, listed = [entry.name for entry in entries], ", ".join(shown) or "nothing"
        if isinstance(self.which, int) and self.which >= len(entries):
            raise ClassifierError(f"the classifier has no output at position {self.which}; it returns {listed}", "")
        if isinstance(self.which, int):
            return self.which
        if self.which is not None and self.which not in names:
            raise ClassifierError(f"the classifier has no output {self.which!r}; it returns {listed}", "")
        usual = "logits" if self.log_scale else "probabilities"
        name = self.which or usual
        if name in names:
            return names.index(name)
        able = [place for place, entry in enumerate(entries) if self._fits(entry)]
        if len(able) > 1:
            raise ClassifierError(
                f"{len(able)} outputs of the classifier can be its {self.kind}: "
                f"{', '.join(shown[place] for place in able)}; choose one with output= (--output on the command line)",
                "",
            )
        if not able and len(entries) != 1:
            raise ClassifierError(f"the classifier must return {SHAPES[self.kind]}, got {listed}", "")
        return able[0] if able else 0

    def _fits(self, entry: Entry) -> bool:
        """Whether an output can be an answer of this kind, or, if not binary, one with a single column."""
        if not entry.floating or entry.shape is None:
            return entry.floating
        inner = entry.shape[1:] if self.binary else entry.shape[2:]
        return len(entry.shape) >= 1 and all(size in (1, None) for size in inner)

    def _check_probabilities(self, answer: Tensor) -> None:
        values = answer.detach().float()
        if bool((values < -RANGE_ROUNDING).any() | (values > 1 + RANGE_ROUNDING).any()):
            raise ClassifierError(
                f"output_kind={self.kind!r}: expected values in [0, 1], got {float(values.amin()):.4g} to "
                f"{float(values.amax()):.4g}; if they are logits, use {'binary-logit' if self.binary else 'logits'}",
                "",
            )
        if self.binary:
            return
        sums = values.flatten(1).sum(1)
        wrong = (sums - 1).abs() > SUM_ROUNDING
        if bool(wrong.any()):
            raise ClassifierError(
                f"output_kind={self.kind!r}: expected rows that sum to 1, got {float(sums[wrong][0]):.4g}; one of K "
                "independent probabilities cannot be audited as a choice between classes",
                "",
            )


def check_tensors(output: Any, classifier: str) -> None:
    """Raise ``ClassifierError`` if there is no tensor in a torch classifier's output; ``classifier`` names it."""
    parts = _parts(output)
    if any(isinstance(value, Tensor) for _, value in parts):
        return
    got = ", ".join(_shown([_entry(name, value) for name, value in parts])[:MOST_SHOWN]) or "nothing"
    raise ClassifierError(
        f"{classifier} must return a torch tensor, or several, got {got}; leave out .numpy(), .tolist() and .item(), "
        "because attacks differentiate its answer",
        "",
    )


LOGITS = Output()
"""By default: logits (N, K), called so or the only ones."""


def _parts(output: Any) -> list[tuple[str | None, Any]]:
    """The parts of a classifier's output with their names, if they have any."""
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", [None] * len(output))  # a named tuple has _fields
        return list(zip(names, output, strict=True))
    return [(None, output)]


def _entry(name: str | None, value: Any) -> Entry:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return Entry(name, False, (), type(value).__name__)
    text = f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
    if not isinstance(value, Tensor):
        text = f"{type(value).__module__}.{type(value).__name__} {text}"
    return Entry(name, isinstance(value, Tensor) and value.is_floating_point(), tuple(shape), text)


def _shown(entries: Sequence[Entry]) -> list[str]:
    """Position (if there are several), name (if it has one), type and shape of each output."""
    texts = [entry.text if entry.name is None else f"{entry.name!r} {entry.text}" for entry in entries]
    return texts if len(texts) == 1 else [f"{place}: {text}" for place, text in enumerate(texts)]
