"""When the loss is read, and what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier.training.loop import train
from purifier.training.progress import Progress, Reporter


@pytest.mark.parametrize(("seconds", "steps"), [(60, 1), (2.0, 2), (0.5, 10), (0.001, 20)])
def test_the_loss_is_read_every_few_seconds_but_not_rarely(
    seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("purifier.training.progress.time.perf_counter", lambda: now[0])
    seen: list[Progress] = []
    reporter = Reporter(seen.append, epochs=2, images=1000)
    assert reporter.steps == 1
    reporter.start_epoch(1, 0)
    assert seen.pop().phase == "starting"
    now[0] += seconds
    assert reporter.lap(10, 1) == pytest.approx(seconds)
    reporter.trained(0.5)
    assert reporter.steps == steps
    assert seen[0].images_per_second == pytest.approx(10 / seconds)
    assert seen[0].seconds_left == pytest.approx(1990 * seconds / 10)
    now[0] += 1000  # a state is written, say
    reporter.resume_clock()
    now[0] += seconds
    reporter.lap(10, 1)
    reporter.trained(0.25)
    assert (seen[1].images, seen[1].total, seen[1].loss) == (20, 2000, 0.25)
    assert seen[1].images_per_second == pytest.approx(10 / seconds)


def test_checks_count_in_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("purifier.training.progress.time.perf_counter", lambda: now[0])
    seen: list[Progress] = []
    reporter = Reporter(seen.append, epochs=4, images=50_000)
    reporter.start_epoch(1, 0)
    seen.clear()
    now[0] = 500.0
    reporter.lap(50_000, 500)
    reporter.checking(250, 250, 20.0)
    assert seen[0].phase == "checking" and seen[0].seconds_left == pytest.approx(3 * (500 + 20))


def test_the_first_report_comes_after_the_first_step_and_checks_are_seen(tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = {"channels": 2, "latent": 4}
    train("vae", "demo:80", tmp_path / "p.safetensors", config=config, epochs=2, batch_size=8, recipe="robust",
          classifier="demo", progress=seen.append)  # fmt: skip
    assert (seen[0].images, seen.pop(0).phase) == (0, "starting")
    assert (seen[0].images, seen[0].total, seen[0].phase) == (8, 160, "training") and seen[0].loss > 0
    checks = [now for now in seen if now.phase == "checking"]
    assert [(now.checked, now.to_check) for now in checks if not now.warning] == [(n, 64) for n in range(0, 65, 8)]
    assert {now.epoch for now in checks} == {2} and {now.images for now in checks} == {160}


def test_what_progress_raises_during_a_check_reaches_the_caller(tmp_path: Path) -> None:
    def progress(now: Progress) -> None:
        if now.phase == "checking":
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train("vae", "demo:40", tmp_path / "p.safetensors", config={"channels": 2, "latent": 4}, epochs=1,
              recipe="robust", classifier="demo", progress=progress)  # fmt: skip


def test_images_without_labels_are_labelled_in_sight(tmp_path: Path) -> None:
    seen: list[Progress] = []
    images = torch.rand(20, 1, 28, 28)
    config = {"channels": 2, "latent": 4}
    train("vae", images, tmp_path / "p.safetensors", config=config, epochs=1, batch_size=8, recipe="robust",
          classifier="demo", progress=seen.append)  # fmt: skip
    labelled = [(now.checked, now.to_check, now.images, now.total) for now in seen if now.phase == "labelling"]
    assert labelled == [(8, 20, 0, 20), (16, 20, 0, 20), (20, 20, 0, 20)]
    assert [now.phase for now in seen[:4]] == ["labelling"] * 3 + ["starting"]
