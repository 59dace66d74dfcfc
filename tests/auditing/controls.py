"""Negative controls: guards made of broken purifiers and classifiers, and the flags that each raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deceiving import (
    HalfAGradient,
    OtherInUse,
    OtherOffTheGrid,
    OtherWhileFrozen,
    ReversesDifferences,
    StaircaseInFloat32,
    Waves,
)
from sly import DrawsTheImage, OnlyTheAnswer, OnlyTheTop, ReversedInSingle
from torch import Tensor, nn

import purifier
from broken import (
    BatchMean,
    Behind,
    Broken,
    Counts,
    DeadSurrogate,
    Detached,
    DetachedFactor,
    LastStep,
    Memory,
    Neighbour,
    NoSlopeAtBounds,
    OnTheGrid,
    OtherImage,
    OtherScore,
    OtherSurrogate,
    OtherWithGradients,
    Random,
    Recalls,
    Remembers,
    RemembersInClass,
    RemembersInGlobal,
    Reversed,
    RootOfZero,
    Rounded,
    StraightThrough,
    StubbornNorm,
    normalised,
)

Make = Callable[[nn.Module, Tensor], tuple[nn.Module, purifier.Purifier]]


@dataclass(frozen=True)
class Control:
    """A broken guard, made from a healthy classifier and its images, and the flags a probe of it raises."""

    name: str
    make: Make
    flags: frozenset[str]


def _control(
    name: str, flags: str, make: Callable[[nn.Module, Tensor], tuple[nn.Module, purifier.Purifier]]
) -> Control:
    return Control(name, make, frozenset(flags.split()))


CONTROLS = [
    _control("rounded, exact", "zero-gradient unbounded", lambda model, _: (model, Rounded())),
    _control("detached", "zero-gradient", lambda model, _: (model, Detached())),
    _control("flat surrogate", "zero-gradient noise-wins unbounded", lambda model, _: (model, DeadSurrogate())),
    _control("root of zero", "nan-gradient", lambda model, _: (model, RootOfZero())),
    _control("random, eot=1", "random-without-eot", lambda model, _: (model, Random())),
    _control("batch mean", "batch-dependent", lambda model, _: (model, BatchMean())),
    _control("neighbours mixed", "batch-dependent", lambda model, _: (model, Neighbour())),
    _control("reversed surrogate", "noise-wins unbounded", lambda model, _: (model, Reversed())),
    _control("right on the grid only", "one-step-wins noise-wins unbounded", lambda model, _: (model, OnTheGrid())),
    _control(
        "remembers its images",
        "no-rise unbounded discontinuous gradient-wrong",
        lambda model, images: (model, Memory(images, 0.1)),
    ),
    _control(
        "all classes masked but one", "discontinuous", lambda model, _: (Behind(model, after=OnlyTheTop()), Broken())
    ),
    _control(
        "all other logits zero", "discontinuous", lambda model, _: (Behind(model, after=OnlyTheAnswer()), Broken())
    ),
    _control("softmax", "probabilities", lambda model, _: (Behind(model, after=nn.Softmax(1)), Broken())),
    _control(
        "BatchNorm in training mode",
        "batch-norm batch-dependent",
        lambda model, _: (Behind(model, normalised(StubbornNorm(1))), Broken()),
    ),
    _control(
        "BatchNorm without statistics",
        "batch-norm batch-dependent",
        lambda model, _: (Behind(model, normalised(nn.BatchNorm2d(1, track_running_stats=False))), Broken()),
    ),
    _control("purify_and_score filters, purify does not", "paths-disagree", lambda model, _: (model, OtherImage())),
    _control("two scores", "paths-disagree", lambda model, _: (model, OtherScore())),
    _control(
        "filters without gradients only",
        "paths-disagree gradient-wrong unbounded",
        lambda model, _: (model, OtherWithGradients()),
    ),
    _control("filters while audited only", "paths-disagree", lambda model, _: (model, OtherInUse())),
    _control("filters while frozen only", "paths-disagree", lambda model, _: (model, OtherWhileFrozen())),
    _control("other images alone", "batch-dependent", lambda model, _: (model, OtherOffTheGrid())),
    _control("staircase in float32 only", "gradient-wrong", lambda model, _: (model, StaircaseInFloat32())),
    _control("half a gradient in float32", "gradient-wrong", lambda model, _: (model, HalfAGradient())),
    _control(
        "surrogate that does not purify",
        "paths-disagree noise-wins unbounded",
        lambda model, _: (model, OtherSurrogate()),
    ),
    _control(
        "remembers in an attribute",
        "stateful paths-disagree zero-gradient discontinuous",
        lambda model, _: (model, Remembers()),
    ),
    _control(
        "remembers in its class", "stateful zero-gradient discontinuous", lambda model, _: (model, RemembersInClass())
    ),
    _control(
        "remembers in a global", "stateful zero-gradient discontinuous", lambda model, _: (model, RemembersInGlobal())
    ),
    _control(
        "classifier that remembers",
        "stateful paths-disagree zero-gradient discontinuous",
        lambda model, _: (Behind(model, Recalls()), Broken()),
    ),
    _control("counts its calls", "stateful nondeterministic unbounded", lambda model, _: (model, Counts())),
    _control("last step only", "gradient-wrong", lambda model, _: (model, LastStep())),
    _control("straight through, exact", "gradient-wrong", lambda model, _: (model, StraightThrough())),
    _control("no slope at the bounds", "gradient-wrong", lambda model, _: (model, NoSlopeAtBounds())),
    _control(
        "image declared as noise",
        "random-without-eot gradient-wrong",
        lambda model, _: (model, DrawsTheImage()),
    ),
    _control(
        "reversed in float32 only",
        "gradient-wrong unbounded",
        lambda model, _: (model, ReversedInSingle()),
    ),
    _control(
        "reversed for attacks only",
        "gradient-wrong unbounded",
        lambda model, _: (Behind(model, after=ReversesDifferences()), Broken()),
    ),
    _control("shattered", "gradient-wrong unbounded", lambda model, _: (Behind(model, before=Waves()), Broken())),
    _control("detached factor", "gradient-wrong", lambda model, _: (model, DetachedFactor())),
]
"""All controls that are the same each time; ``HiddenRandom`` is not."""
