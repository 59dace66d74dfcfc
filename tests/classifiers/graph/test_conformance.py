"""ONNX's own cases are the oracle of every operator."""

from __future__ import annotations

import warnings

import pytest

from conformance import all_cases, check_case
from purifier.foreign_code import Attempt, is_exception
from unsupported_cases import UNCERTAIN, UNSUPPORTED

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LEFT_OUT = {name for names in UNSUPPORTED.values() for name in names}
IGNORED = {name for names in UNCERTAIN.values() for name in names}


@pytest.mark.parametrize("letter", LETTERS)
def test_operators_give_what_onnx_expects(letter: str) -> None:
    wrong, right = {}, []
    for name, case in all_cases().items():
        if not name.startswith(letter) or name in IGNORED:
            continue
        with warnings.catch_warnings(), Attempt() as attempt:
            warnings.simplefilter("error")
            check_case(case)
        if attempt.error is None:
            right.append(name)
        else:
            assert is_exception(attempt.error)
            wrong[name] = str(attempt.error)[:200]
    unexpected = {name: text for name, text in wrong.items() if name not in LEFT_OUT}
    assert not unexpected, f"{len(unexpected)} cases fail"
    assert not LEFT_OUT.intersection(right), "these cases pass now: take them off the list in unsupported_cases.py"


def test_the_lists_name_cases_that_exist() -> None:
    assert set(all_cases()) >= LEFT_OUT | IGNORED


def test_most_cases_are_supported() -> None:
    assert len(all_cases()) - len(LEFT_OUT | IGNORED) >= 1800


def test_every_case_has_a_letter() -> None:
    assert all(name[0] in LETTERS for name in all_cases())
