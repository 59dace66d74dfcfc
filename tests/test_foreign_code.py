"""Running somebody else's code: what is kept, what passes, and what the error says."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref

import pytest
import torch

from purifier.errors import ConfigError, PluginError
from purifier.foreign_code import Attempt, Interrupted, cause_of, explained, first_line, is_foreign, place_of


class Fails:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> None:
        raise self.error


def test_an_attempt_keeps_the_error_and_goes_on() -> None:
    with Attempt() as attempt:
        Fails(ValueError("bad"))()
    assert attempt.error is not None and cause_of(attempt.error) == "ValueError: bad"
    with Attempt() as attempt:
        pass
    assert attempt.error is None


def test_a_cause_is_one_clause_without_a_stray_period() -> None:
    with Attempt() as attempt:
        Fails(ValueError("It is bad.\nVery."))()
    assert attempt.cause.startswith("ValueError: It is bad. Very, at ")
    with (
        pytest.raises(ConfigError, match=r"^it failed \(ValueError: Bad, at .*\.py:\d+\); fix it$"),
        explained("it failed", ConfigError, "fix it"),
    ):
        Fails(ValueError("Bad."))()
    assert first_line(ValueError("Bad.\nWorse.")) == "Bad"


def test_own_errors_need_no_type() -> None:
    assert cause_of(ConfigError("steps must be 1 or more")) == "steps must be 1 or more"
    assert cause_of(ConfigError()) == "ConfigError"


def test_ctrl_c_passes_unless_it_is_asked_for() -> None:
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), Attempt():
        Fails(error)()
    with Attempt((KeyboardInterrupt,)) as attempt:
        Fails(error)()
    assert attempt.error is error


class Own(BaseException):
    """An author's class that no ``except Exception`` catches."""


@pytest.mark.parametrize("error", [Own("no"), GeneratorExit("no"), asyncio.CancelledError("no")], ids=type)
def test_whatever_foreign_code_raises_is_an_error_of_its_own(error: BaseException) -> None:
    with Attempt() as attempt:
        Fails(error)()
    assert attempt.error is error and attempt.cause.startswith(f"{type(error).__name__}: no, at ")
    said = f"X fails .{type(error).__name__}: no, at "
    with pytest.raises(ConfigError, match=said), explained("X fails", ConfigError):
        Fails(error)()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), type("Terminated", (Interrupted,), {})()], ids=type)
def test_the_end_of_this_projects_own_work_is_nobodys_error(error: BaseException) -> None:
    with pytest.raises(type(error)), Attempt():
        Fails(error)()
    with pytest.raises(type(error)), explained("X fails", ConfigError, passing=lambda _: False):
        Fails(error)()


def test_the_end_of_the_program_is_kept_like_an_exception() -> None:
    with Attempt() as attempt:
        Fails(SystemExit(3))()
    assert attempt.cause.startswith("it exited the program with code 3")


def test_an_error_raised_from_itself_is_no_endless_chain() -> None:
    error = ValueError("again")
    with Attempt() as attempt:
        raise error from error
    assert attempt.error is error and error.__traceback__ is None


def test_an_attempt_does_not_keep_the_failed_calls_tensors_alive() -> None:
    def fail() -> weakref.ref[torch.Tensor]:
        def call() -> None:
            tensor = torch.zeros(3)
            kept.append(weakref.ref(tensor))
            try:
                raise ValueError("first")
            except ValueError as error:
                raise RuntimeError("second") from error

        kept: list[weakref.ref[torch.Tensor]] = []
        with Attempt() as attempt:
            call()
        assert attempt.error is not None
        return kept[0]

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("error", "says"), [(KeyError("late"), "KeyError: 'late'"), (SystemExit(2), cause_of(SystemExit(2)))]
)
def test_foreign_errors_become_one_error_with_cause_and_advice(error: BaseException, says: str) -> None:
    catching = (Exception, SystemExit)
    with pytest.raises(ConfigError) as raised, explained("X fails", ConfigError, "fix it", catching=catching):
        Fails(error)()
    place = r", at .*test_foreign_code\.py:\d+"
    assert re.fullmatch(re.escape(f"X fails ({says}") + place + re.escape("); fix it"), str(raised.value))
    assert raised.value.__cause__ is error
    with pytest.raises(ConfigError) as raised, explained("X fails", ConfigError, catching=catching):
        Fails(error)()
    assert re.fullmatch(re.escape(f"X fails ({says}") + place + re.escape(")"), str(raised.value))


def test_the_place_is_the_last_line_of_foreign_code() -> None:
    def author() -> None:
        torch.zeros(2).view(3)

    with Attempt() as attempt:
        author()
    line = author.__code__.co_firstlineno + 1
    assert attempt.cause.startswith("RuntimeError: ") and attempt.cause.endswith(f"test_foreign_code.py:{line}")
    with Attempt() as attempt:
        torch.zeros(2).view(3)
    assert attempt.error is not None and place_of(attempt.error) is None  # the traceback is gone


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        *((name, False) for name in ("purifier.plugins.x", "torch.nn", "json.decoder", "", None)),
        *((name, True) for name in ("__main__", "mine", "purifier_mine.x")),
    ],
)
def test_code_of_this_project_torch_and_python_is_not_foreign(module: str | None, foreign: bool) -> None:
    assert is_foreign(module) == foreign


def test_the_cause_of_an_exit_names_its_code() -> None:
    assert "code 2" in cause_of(SystemExit(2))


def test_own_errors_and_those_let_through_pass_as_they_are() -> None:
    for error, passing in ((PluginError("own", "x"), {}), (ValueError(), {"passing": lambda found: True})):
        with pytest.raises(type(error)) as raised, explained("X fails", ConfigError, **passing):
            Fails(error)()
        assert raised.value is error


def test_a_long_message_is_cut_to_one_line() -> None:
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(ValueError()) == cause_of(ValueError()) == "ValueError"
    assert cause_of(ValueError("a\n  b")) == "ValueError: a b"
