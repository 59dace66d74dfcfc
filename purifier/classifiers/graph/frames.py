"""A program while it is compiled: slots, what is known about them, and the names that stand for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .node import Node
from .program import NOTHING, UNUSED, Program, Step
from .table import Call
from .values import Value


@dataclass(frozen=True)
class Draft:
    """A step before it is known which values are used."""

    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    host: frozenset[int]
    title: str
    carried: frozenset[int]
    """Slots of inputs through which a gradient may come."""
    surrogates: frozenset[str]
    """Operators, here or in a body, whose gradient is a straight-through surrogate."""
    node: Node | None
    """What it was made from; None for a draft that stands for several."""
    fixed: bool = False
    """Whether the shapes of the inputs determine what it makes."""


class Finished(NamedTuple):
    """A program, and the way that its gradients take."""

    program: Program
    surrogates: frozenset[str]
    """The straight-through operators on the way."""
    inputs: frozenset[int]
    """The slots of inputs that the way leads to."""


@dataclass
class Frame:
    """The slots of one program; ``parent`` is the frame of the graph around it."""

    parent: Frame | None = None
    size: int = 2
    drafts: list[Draft] = field(default_factory=list)
    constants: dict[int, Value] = field(default_factory=lambda: {NOTHING: None})
    """Values that are known beforehand, by slot."""
    captured: dict[int, int] = field(default_factory=dict)
    """Slots of the frame around it, and the slots here that get their values."""
    carrying: set[int] = field(default_factory=set)
    """Slots whose values may carry a gradient."""
    shaped: set[int] = field(default_factory=set)
    """Slots whose values have shapes that the shapes of the inputs determine; that of a constant is one too."""
    fixed: set[int] = field(default_factory=set)
    """Slots whose values themselves are determined by the shapes of the inputs, as parts of shapes are."""

    def new_slot(self) -> int:
        self.size += 1
        return self.size - 1

    def constant(self, value: Value) -> int:
        """A slot with a value that is known beforehand; all live in the outermost frame, where a module holds them."""
        if value is None:
            return NOTHING
        if self.parent is not None:
            return self.capture(self.parent.constant(value))
        slot = self.new_slot()
        self.constants[slot] = value
        return slot

    def capture(self, outer: int) -> int:
        """The slot here for a slot of the frame around it."""
        assert self.parent is not None
        if outer == NOTHING:
            return NOTHING
        if outer not in self.captured:
            slot = self.captured[outer] = self.new_slot()
            if outer in self.parent.constants:
                self.constants[slot] = self.parent.constants[outer]
            if outer in self.parent.carrying:
                self.carrying.add(slot)
        return self.captured[outer]

    def is_fixed(self, slot: int) -> bool:
        return slot in self.constants or slot in self.fixed

    def is_shaped(self, slot: int) -> bool:
        return slot in self.constants or slot in self.shaped

    def finish(self, inputs: Iterable[int], outputs: Iterable[int]) -> Finished:
        """The program without steps that nobody needs."""
        given, wanted = tuple(inputs), tuple(outputs)
        live, differentiated = set(wanted), set(wanted)
        kept: list[tuple[Draft, tuple[int, ...]]] = []
        surrogates: set[str] = set()
        for draft in reversed(self.drafts):
            if not live.intersection(draft.outputs):
                continue
            if differentiated.intersection(draft.outputs):
                differentiated |= draft.carried
                surrogates |= draft.surrogates
            last = {slot for slot in draft.inputs if slot not in live}
            unread = {slot for slot in draft.outputs if slot not in live}
            live.update(draft.inputs)
            frees = (last | unread) - self.constants.keys() - {UNUSED}
            kept.append((draft, tuple(sorted(frees))))
        steps = [
            Step(draft.call, draft.inputs, draft.outputs, frees, draft.host, draft.title, draft.fixed)
            for draft, frees in reversed(kept)
        ]
        program = Program(tuple(steps), self.size, given, wanted, tuple(self.captured.values()))
        return Finished(program, frozenset(surrogates), frozenset(differentiated.intersection(given)))


@dataclass
class Scope:
    """The names that stand for slots in a graph or function; a subgraph also sees those of ``parent``."""

    frame: Frame
    parent: Scope | None = None
    names: dict[str, int] = field(default_factory=dict)

    def find(self, name: str) -> int | None:
        """The slot of a name; None if there is none."""
        if not name:
            return NOTHING
        if name in self.names:
            return self.names[name]
        if self.parent is None:
            return None
        outer = self.parent.find(name)
        if outer is None:
            return None
        found = outer if self.parent.frame is self.frame else self.frame.capture(outer)
        self.names[name] = found
        return found
