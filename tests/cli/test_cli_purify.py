"""``purifier purify``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import purifier
from purifier.data.loading import load_data
from purifier.rejection.calibration import calibrate, threshold_of

Command = Callable[..., tuple[int, str, str]]


def test_purify_prints_one_line_per_image_and_draws_a_picture(command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), (90, 90, 90)).save(tmp_path / "plain [red].png")
    out = tmp_path / "made" / "grid.png"
    code, shown, err = command("purify", "demo", tmp_path / "plain [red].png", "demo:3-5", "--out", out)
    assert (code, err) == (0, "")
    lines = shown.splitlines()
    scores = purifier.load("demo").score(load_data("demo").batch([3, 4])[0]).tolist()
    assert lines[1:3] == [f"demo:3-5[{n}]      {score:.4g}" for n, score in enumerate(scores)]
    assert re.fullmatch(r"plain \[red\]\.png  \d[\d.]+", lines[0])
    assert lines[3].startswith("not calibrated: to find a threshold, run `purifier calibrate ")
    assert lines[4:] == [f"picture {out}"]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width == pytest.approx((1.15 * 3 + 1.6) * 110, abs=1)
    assert [path.name for path in out.parent.iterdir()] == ["grid.png"]


def test_a_calibrated_checkpoint_shows_what_it_rejects(command: Command, tmp_path: Path) -> None:
    vae = purifier.load("demo-plain")
    calibrate(vae, "demo:200", fpr=0.3)
    threshold = threshold_of(vae)
    checkpoint = purifier.save(vae, tmp_path / "vae.safetensors")
    code, shown, _ = command("purify", checkpoint, "demo:200-212", "fashion-mnist:train:2", "--out", tmp_path / "x.png")
    assert code == 0
    for line in shown.splitlines()[:14]:
        name, score, verdict = line.split(maxsplit=2)
        assert verdict == ("rejected" if float(score) > threshold else "not rejected"), name
    assert "fashion-mnist:train:2[1]" in shown
    verdicts = [line.endswith("not rejected") for line in shown.splitlines()[:14]]
    assert not all(verdicts) and any(verdicts)
    assert f"rejected: score above {threshold:.4g}, calibrated on demo:200 to a false-positive rate of 0.3" in shown


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("demo demo:2 --out grid.jpg", "--out: expected a file ending in .png, got grid.jpg"),
        ("demo demo --out grid.png", "a picture holds at most 64 images, got 300"),
        ("demo absent.png --out grid.png", "no image file absent.png"),
        ("absent.safetensors demo:2 --out grid.png", "no file absent.safetensors"),
        ("demo demo:2 --out taken.png", "cannot write taken.png: it is a folder"),
        ("demo demo:2 --out taken.png/a/file/grid.png", "cannot write taken.png/a/file/grid.png"),
        ("vae:image_shape=3x32x32 demo:2 --out grid.png", "demo:2: expected images 3x32x32"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "taken.png" / "a").write_text("a file")
    code, _, err = command("purify", *line.split())
    assert code == 2
    assert err.startswith("error: ") and says in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "taken.png"]


def test_an_unwritable_picture_is_an_error_before_any_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work began")

    vae = type(purifier.load("demo"))
    monkeypatch.setattr(vae, "purify_and_score", work)
    (tmp_path / "grid.png").mkdir()
    code, _, err = command("purify", "demo", "demo:2", "--out", tmp_path / "grid.png")
    assert code == 2
    assert "it is a folder" in err
