"""Which of a classifier's outputs is its answer, of what kind it is, and how it becomes logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from .containers import parts_of, with_part
from .data.pixels import fits
from .data.reading import sizes_of
from .errors import ClassifierError, ConfigError
from .vocabulary import OutputKind

RANGE_ROUNDING, SUM_ROUNDING = 1e-3, 1e-2
"""How far probabilities may lie outside [0, 1], and their sum from 1; both are rounding in half precision."""
MOST_SHOWN = 5
"""How many outputs without a tensor are listed: a list of lists has one for each image."""
CHOOSE = "choose one with output= (--output on the command line)"
SHAPES = {
    "logits": "logits, floats (N, K)",
    "probabilities": "probabilities, floats (N, K)",
    "binary-logit": "one logit per image, floats (N,) or (N, 1)",
    "binary-probability": "one probability per image, floats (N,) or (N, 1)",
    "label": "one class per image, whole numbers or strings (N,) or (N, 1)",
}


@dataclass(frozen=True)
class Entry:
    """One of a classifier's outputs, as far as it is known without its values."""

    name: str | None
    floating: bool
    shape: tuple[int | None, ...] | None
    """None if unknown, as a size can be."""
    text: object
    """Type and shape, for messages: ``str`` of it."""
    naming: bool = False
    """Whether its values can be labels: whole numbers or strings."""


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
        (N, 1), class 1 if above 0. ``binary-probability``: (N,) or (N, 1), the probability of class 1. ``label``: (N,)
        or (N, 1), the class alone, only of an ONNX graph. All may have further dimensions of size 1.

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
        """Whether the answer is one number per image, for two classes."""
        return self.kind.startswith("binary-")

    @property
    def labels(self) -> bool:
        """Whether the answer is a class alone."""
        return self.kind == "label"

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
        if self.labels:
            raise ClassifierError(
                "output_kind='label': only an ONNX file says how many classes there are; let the torch classifier "
                "return logits or probabilities",
                "",
            )
        parts = parts_of(output)
        found: Tensor = parts[self.choose([_entry(name, value) for name, value in parts])][1]
        return found

    def replace(self, output: Any, answer: Tensor) -> Any:
        """A classifier's output of the same type with another answer in place of the result of ``find``.

        Raises
        ------
        ClassifierError
            Other entries say the class of each image too, and would contradict the new answer; or the output's type
            cannot be changed.
        """
        parts = parts_of(output)
        entries = [_entry(name, value) for name, value in parts]
        place = self.choose(entries)
        for other in range(len(entries)):
            if other != place and _are_labels(parts[other][1], answer):
                raise ClassifierError(
                    f"the classifier's output {_shown(entries)[other]} holds a label for each image, which "
                    "would remain",
                    "",
                )
        return with_part(output, place, answer)

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
        place = self._chosen(entries)
        entry = entries[place]
        if not self._fits(entry):
            other = "choose another output with output= (--output), or " if len(entries) > 1 else ""
            raise ClassifierError(
                f"the classifier must return {SHAPES[self.kind]}, got {_shown(entries)[place]}; {other}if the answer "
                "is of another kind, give output_kind= (--output-kind on the command line)",
                "",
            )
        one_number = self.binary or self.labels
        if not one_number and entry.shape is not None and (len(entry.shape) == 1 or entry.shape[1] == 1):
            raise ClassifierError(
                f"the classifier must return {SHAPES[self.kind]}, for 2 or more classes, got one number per image, "
                f"{_shown(entries)[place]}; if it is the answer of a two-class classifier, give its kind: "
                "output_kind='binary-logit' or 'binary-probability' (--output-kind on the command line)",
                "",
            )
        return place

    def _chosen(self, entries: Sequence[Entry]) -> int:
        names = [entry.name for entry in entries]
        known = self.which < len(entries) if isinstance(self.which, int) else self.which is None or self.which in names
        if not known:
            which = f"at position {self.which}" if isinstance(self.which, int) else repr(self.which)
            raise ClassifierError(f"the classifier has no output {which}; it returns {_listed(entries)}; {CHOOSE}", "")
        if isinstance(self.which, int):
            return self.which
        usual = "label" if self.labels else "logits" if self.log_scale else "probabilities"
        name = self.which or usual
        if name in names:
            return names.index(name)
        able = [place for place, entry in enumerate(entries) if self._fits(entry)]
        if len(able) > 1:
            shown = ", ".join(_shown(entries)[place] for place in able)
            raise ClassifierError(
                f"{len(able)} outputs of the classifier can be its {self.kind}: {shown}; {CHOOSE}", ""
            )
        if not able and len(entries) != 1:
            raise ClassifierError(
                f"the classifier must return {SHAPES[self.kind]}, got {_listed(entries)}; {CHOOSE}, and its kind with "
                "output_kind= (--output-kind)",
                "",
            )
        return able[0] if able else 0

    def _fits(self, entry: Entry) -> bool:
        """Whether an output can be an answer of this kind, or, if not binary, one with a single column."""
        right = entry.naming if self.labels else entry.floating
        if not right or entry.shape is None:
            return right
        inner = entry.shape[1:] if self.binary or self.labels else entry.shape[2:]
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
    parts = parts_of(output)
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


def _are_labels(value: Any, answer: Tensor) -> bool:
    """Whether a part of an output is one integer for each of the answer's images."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim == 0:
        return False
    return fits(value.shape[:1], answer.shape[:1]) and all(size in (1, None) for size in sizes_of(value)[1:])


def _entry(name: str | None, value: Any) -> Entry:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return Entry(name, False, (), type(value).__name__)
    if not isinstance(value, Tensor):
        return Entry(
            name, False, tuple(shape), _Text(dtype, shape, f"{type(value).__module__}.{type(value).__name__} ")
        )
    return Entry(name, value.is_floating_point(), sizes_of(value), _Text(dtype, shape))


@dataclass(frozen=True)
class _Text:
    """Dtype and shape, made into text only for messages: torch.export cannot format the sizes that it leaves free."""

    dtype: Any
    shape: Any
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{str(self.dtype).removeprefix('torch.')} {tuple(self.shape)}"


def _shown(entries: Sequence[Entry]) -> list[str]:
    """Position (if there are several), name (if it has one), type and shape of each output."""
    texts = [str(entry.text) if entry.name is None else f"{entry.name!r} {entry.text}" for entry in entries]
    return texts if len(texts) == 1 else [f"{place}: {text}" for place, text in enumerate(texts)]


def _listed(entries: Sequence[Entry]) -> str:
    return ", ".join(_shown(entries)) or "nothing"
