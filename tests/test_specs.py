"""Specs and the conversion of options by type hints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from purifier.errors import ConfigError, SpecError
from purifier.specs import build, split_spec


@dataclass(frozen=True)
class Options:
    shape: tuple[int, int, int]
    steps: int = 1
    size: float | None = None
    start: bool = True
    loss: Literal["ce", "margin"] = "ce"
    mean: tuple[float, ...] = ()


@dataclass(frozen=True)
class Open:
    name: str
    options: Mapping[str, object] = field(default_factory=dict)


def test_a_spec_is_split() -> None:
    assert split_spec("pgd") == ("pgd", {})
    assert split_spec("pgd:steps=40, step-size=0.1") == ("pgd", {"steps": "40", "step_size": "0.1"})


@pytest.mark.parametrize("spec", ["pgd:", "pgd:steps", ":a=1", "pgd:a=1,a=2", "pgd:=3"])
def test_bad_specs_are_errors(spec: str) -> None:
    with pytest.raises(SpecError):
        split_spec(spec)


def test_text_and_json_values_are_converted() -> None:
    text = {
        "shape": "1x28x28",
        "steps": "3",
        "size": "none",
        "start": "false",
        "loss": "margin",
        "mean": "0.1 0.2",
    }
    assert build(Options, text, what="t") == Options((1, 28, 28), 3, None, False, "margin", (0.1, 0.2))
    fractions = build(Options, {"shape": "1x2x3", "size": "8/255", "mean": "1/4 0.5"}, what="t")
    assert (fractions.size, fractions.mean) == (8 / 255, (0.25, 0.5))
    json = {"shape": [1, 2, 3], "size": 0.5, "start": True}
    assert build(Options, json, what="t") == Options((1, 2, 3), size=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "1x2x3", "stepz": 1}, "no option 'stepz'; its options are: shape, steps"),
        ({}, "needs the option 'shape'"),
        ({"shape": "1x2"}, "'shape': expected numbers such as 1x28x28, got '1x2'"),
        ({"shape": "1x2x3", "steps": "2.5"}, "'steps': expected int, got '2.5'"),
        ({"shape": "1x2x3", "steps": 2.5}, "'steps': expected int"),
        ({"shape": "1x2x3", "steps": True}, "'steps': expected int"),
        ({"shape": "1x2x3", "start": "maybe"}, "'start': expected bool"),
        ({"shape": "1x2x3", "loss": "cw"}, "'loss': expected one of ce, margin, got 'cw'"),
        ({"shape": "1x2x3", "size": "big"}, "'size': expected"),
        ({"shape": "1x2x3", "size": "1/0"}, "'size': expected"),
        ({"shape": "1x2x3", "size": "1/2/3"}, "'size': expected"),
        ({"shape": "1x2x3", "steps": "4/2"}, "'steps': expected int, got '4/2'"),
    ],
)
def test_wrong_values_say_what_was_expected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Options, options, what="t")


def test_a_bare_first_part_is_the_option_asked_for():
    assert split_spec("foolbox:LinfPGD,steps=40", first="name") == ("foolbox", {"name": "LinfPGD", "steps": "40"})
    with pytest.raises(SpecError):
        split_spec("foolbox:steps=40,LinfPGD", first="name")


def test_a_field_named_options_takes_all_other_options():
    built = build(Open, {"name": "x", "steps": "40", "size": "0.5", "start": "false", "how": "best"}, what="adapter")
    assert built == Open("x", {"steps": 40, "size": 0.5, "start": False, "how": "best"})
