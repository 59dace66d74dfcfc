"""The batch size of an audit fits into memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import purifier
from nets import trained
from purifier.auditing import fitting
from purifier.errors import ConfigError
from purifier.torch_tools.memory_need import Need

MB = 10**6


def audited(**options: Any) -> purifier.AuditReport:
    guarded = purifier.guard(trained("net"), purifier.load("identity"))
    return purifier.audit(guarded, "demo:300", attacks=["fgsm"], probes=6, **options)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    def have(size: float | None) -> None:
        monkeypatch.setattr(fitting, "available", lambda _: size)

    return have


@pytest.mark.parametrize(
    ("size", "expected"),
    # 40 percent of the room, less 20 MB, at 1 MB per image
    [(1000 * MB, 250), (675 * MB, 250), (674 * MB, 125), (100 * MB, 15), (60 * MB, 3), (1, 1)],
)
def test_the_largest_batch_whose_gradients_fit_is_taken(
    size: int, expected: int, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(size)
    monkeypatch.setattr(fitting, "measured", lambda *_: Need(20 * MB, MB))
    monkeypatch.setattr("purifier.auditing.audit.run_jobs", stopped)
    with pytest.raises(Stopped) as end:
        audited()
    assert end.value.batch_size == expected


class Stopped(Exception):
    batch_size = 0


def stopped(setup: Any, *_: Any) -> None:
    end = Stopped()
    end.batch_size = setup.batch_size
    raise end


def test_memory_is_measured_on_the_guard_and_changes_no_figure(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Need | None] = []
    measured = fitting.measured
    monkeypatch.setattr(fitting, "measured", lambda *args: found.append(measured(*args)) or found[-1])
    whole = audited()
    assert whole.batch_size == 250
    assert found[0] is not None and 28 * 28 * 4 < found[0].per_image < MB
    room(100 * found[0].per_image / fitting.SHARE + found[0].fixed / fitting.SHARE)
    parts = audited()
    assert parts.batch_size == 62
    assert [row.result for row in parts.rows] == [row.result for row in whole.rows]


def test_what_the_user_chooses_is_not_measured(room: Any) -> None:
    room(1)
    assert audited(batch_size=100).batch_size == 100


def test_no_memory_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(fitting, "need_of", full)
    with pytest.raises(ConfigError, match=r"not enough memory for the gradients of a few images: .*--resize"):
        audited()
