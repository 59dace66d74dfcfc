"""Timing a guard: what is measured, and what the figures mean."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifier
from nets import trained
from onnx_models import linear
from purifier.errors import ConfigError
from purifier.onnx.runtime import open_session
from purifier.timing import ways
from purifier.timing.machine import Machine, measure_machine, work_of
from purifier.timing.measuring import growth, take_turns

QUICK: dict[str, Any] = {"seconds": 0.01, "compiled": False}
CPU = torch.device("cpu")


class Sleepy(nn.Module):
    """A classifier that takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds = trained("net"), seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        logits: Tensor = self.inner(images)
        return logits


def test_every_way_is_timed_at_every_batch_size(tmp_path: Path) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    said: list[str] = []
    report = purifier.bench(guarded, batch_sizes=(4, 1), progress=said.append, **QUICK)
    expected = [("classifier", "torch"), ("guard", "torch"), ("classifier", "onnxruntime"), ("guard", "onnxruntime")]
    assert [(timing.what, timing.engine, timing.batch_size) for timing in report.timings] == [
        (*way, size) for size in (1, 4) for way in expected
    ]
    assert not report.missing and list(report.image_shape) == [1, 28, 28]
    for timing in report.timings:
        assert timing.calls >= 5 and 0 < timing.p50 <= timing.p99
        assert timing.batch_size / timing.p99 <= timing.images_per_second
        assert (timing.overhead is None) == (timing.what == "classifier")
        assert timing.of_matmul_rate is not None and timing.of_matmul_rate > 0
    assert said[0] == "exporting and compiling" and said[-1] == "batches of 4"
    found = json.loads(report.save(tmp_path / "bench.json").read_text())
    assert found["schema"] == 1 and found["timings"][1]["overhead"] == report.timings[1].overhead


def test_onnx_runtime_has_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def noted(*arguments: Any, **options: Any) -> Any:
        session = open_session(*arguments, **options)
        found.append(session.get_session_options().intra_op_num_threads)
        return session

    monkeypatch.setattr(ways, "open_session", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        purifier.bench(purifier.guard(trained("net"), "demo-plain"), batch_sizes=(1,), **QUICK)
    finally:
        torch.set_num_threads(before)
    assert found == [1, 1]


def test_overhead_and_speed_are_those_of_the_clock() -> None:
    guarded = purifier.guard(Sleepy(0.05), "identity")
    report = purifier.bench(guarded, batch_sizes=(2,), image_shape=(1, 28, 28), **QUICK)
    classifier, guard = (timing for timing in report.timings if timing.engine == "torch")
    assert classifier.p50 >= 0.05 and guard.overhead == guard.p50 / classifier.p50
    assert classifier.images_per_second <= 2 / 0.05


def test_a_session_is_timed_with_its_classifier() -> None:
    report = purifier.bench(purifier.guard(linear(), "blur", image_shape=(3, 8, 8)), batch_sizes=(3,), **QUICK)
    assert [(timing.what, timing.engine) for timing in report.timings] == [
        ("classifier", "onnxruntime"),
        ("guard", "onnxruntime"),
    ]
    assert list(report.image_shape) == [3, 8, 8] and report.timings[0].of_matmul_rate is None


def test_what_does_not_work_is_left_out_with_its_reason() -> None:
    class Unexportable(Sleepy):
        def forward(self, images: Tensor) -> Tensor:
            if float(images.sum()) < -1:
                raise RuntimeError
            return super().forward(images)

    report = purifier.bench(purifier.guard(Unexportable(0), "demo-plain"), batch_sizes=(1,), **QUICK)
    assert [timing.engine for timing in report.timings] == ["torch", "torch"]
    assert sorted(report.missing) == ["classifier, onnxruntime", "guard, onnxruntime"] and all(report.missing.values())


def test_the_guard_is_as_before() -> None:
    net = trained("net").train().requires_grad_()
    guarded = purifier.guard(net, "demo-plain")
    before = {name: value.clone() for name, value in guarded.state_dict().items()}
    purifier.bench(guarded, batch_sizes=(1,), **QUICK)
    assert net.training and all(weight.requires_grad for weight in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in guarded.state_dict().items())


def test_the_work_of_a_layer_is_what_its_sizes_say() -> None:
    layer, images = nn.Linear(30, 20, bias=False), torch.rand(4, 30)
    found = work_of(lambda: layer(images))
    assert found.flops == 2 * 4 * 30 * 20
    assert found.moved == 4 * (4 * 30 + 30 * 20 + 4 * 20)


def test_calls_take_turns() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    found = take_turns(calls, CPU, 0.0)
    assert seen == ["a", "b"] * 7 and [len(values) for values in found.values()] == [5, 5]


def test_growth_is_that_of_the_call() -> None:
    found = growth(lambda: torch.ones(25_000_000).sum(), CPU)
    assert found is None or 90e6 < found < 130e6


def test_the_better_of_two_measurements_counts() -> None:
    one, other = Machine("cpu", 1, 5.0, 1.0), Machine("cpu", 1, 4.0, 2.0)
    assert one.best(other) == Machine("cpu", 1, 5.0, 2.0)
    found = measure_machine(CPU, 0.01)
    assert found.flops > 1e8 and found.bandwidth > 1e8 and found.threads == torch.get_num_threads()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_sizes": (0,)}, r"batch_sizes: expected positive numbers of images, such as \(1, 8\), got \(0,\)"),
        ({"batch_sizes": ()}, "batch_sizes: expected positive"),
        ({"seconds": 0}, "seconds: expected a positive number, got 0"),
        ({"image_shape": (1, 28)}, r"image_shape: expected \(C, H, W\), three positive integers, got \(1, 28\)"),
        ({"image_shape": None}, "neither purifier nor classifier says"),
    ],
)
def test_wrong_options_are_said(options: Any, says: str) -> None:
    guarded = purifier.guard(trained("net"), "identity")
    with pytest.raises(ConfigError, match=says):
        purifier.bench(guarded, **{"image_shape": (1, 28, 28), **options})


def test_only_a_guard_can_be_timed() -> None:
    with pytest.raises(ConfigError, match="bench: expected a guard, got Linear; make one with purifier.guard"):
        purifier.bench(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_command_prints_and_writes(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "bench.json"
    options = f"--classifier demo --purifier demo --batch-size 1 --seconds 0.01 --no-compile --out {out}".split()
    code, shown, said = command("bench", *options)
    assert code == 0
    for text in ("batches of 1", "guard, onnxruntime", "overhead", "GFLOP/s", str(out)):
        assert text in shown.replace("\n", "")
    assert "…" not in shown and json.loads(out.read_text())["timings"]
    assert "batches of 1" in said
    code, _, said = command("bench", *options)
    assert code == 2 and "--overwrite" in said
    assert command("bench", *options, "--overwrite")[0] == 0
