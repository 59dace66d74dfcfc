"""certify(): certificates of guards, how they are kept, and what ends in an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
import torch

import purifier
from nets import trained
from onnx_models import linear
from purifier.certifying.certificates import NO_ANSWER, Certificates
from purifier.certifying.certify import JOURNAL
from purifier.errors import ConfigError, FileError, OutputError
from purifier.reporting.certified_plot import certified_plot

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"samples": 60, "first": 10}


@pytest.fixture(scope="module")
def made() -> Certificates:
    return purifier.certify(purifier.guard(trained("net"), "demo-plain"), "demo:12", sigma=0.1, **QUICK)


def test_shares_and_radii_are_those_of_the_images(made: Certificates) -> None:
    assert (made.model, made.method, made.norm, made.data["count"]) == ("guarded", "smoothing", "l2", 12)
    assert made.purifier is not None and made.purifier["plugin"] == "vae"
    for answer, count, radius in zip(made.answers, made.counts, made.radii, strict=True):
        assert (answer == NO_ANSWER) == (radius == 0) and 0 <= count <= 60
        assert radius <= made.largest_radius and (radius == made.largest_radius) == (count == 60)
    right = np.array(made.answers) == np.array(made.labels)
    for radius in made.steps():
        assert made.certified(radius).correct == (right & (np.array(made.radii) > radius)).sum()
    assert made.certified(0).correct > 4 and made.certified(made.largest_radius).correct == 0
    assert made.steps()[0] == 0 and made.steps()[-1] < made.largest_radius
    assert made.mean_radius == pytest.approx((right * np.array(made.radii)).mean())
    assert made.abstained.correct == made.answers.count(NO_ANSWER)


def test_an_onnx_guard_gets_the_same_certificates(tmp_path: Path, made: Certificates) -> None:
    path = purifier.export(purifier.guard(trained("net"), "demo-plain"), tmp_path / "guarded.onnx").path
    alone = purifier.certify(path, "demo:12", sigma=0.1, **QUICK)
    assert alone.model == "undefended" and alone.purifier is None and alone.notes == []
    assert np.abs(np.array(alone.counts) - np.array(made.counts)).max() <= 1  # rounding
    assert alone.labels == made.labels


def test_the_batch_size_changes_nothing(made: Certificates) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    other = purifier.certify(guarded, "demo:12", sigma=0.1, batch_size=7, **QUICK)
    assert torch.is_grad_enabled()
    assert (other.answers, other.counts) == (made.answers, made.counts)


def test_a_random_purifier_draws_for_each_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=2,sample=true").eval()
    draw, drawn = type(vae).draw, list[torch.Tensor]()

    def recorded(self: purifier.Purifier, *given: Any) -> torch.Tensor:
        drawn.append(draw(self, *given))
        return drawn[-1]

    guarded = purifier.guard(trained("net"), vae)
    monkeypatch.setattr(type(vae), "draw", recorded)
    purifier.certify(guarded, "demo:3", sigma=0.1, **QUICK)
    copies = torch.cat([noise for noise in drawn if len(noise) >= 10])  # the others are of checks on two images
    assert len(copies) == 3 * 70 and len(copies.unique(dim=0)) == len(copies)


def test_who_was_not_trained_for_the_noise_is_warned_about(made: Certificates) -> None:
    (note,) = made.notes
    assert "trained for no such noise, not for sigma=0.1" in note and "denoise:noise=0.1" in note
    for noise, warned in ((0.1, False), (0.25, True)):
        filter_ = purifier.load("demo-plain")
        filter_.provenance = {**filter_.provenance, "training": {"options": {"noise": noise}}}
        guarded = purifier.guard(trained("net"), filter_)
        assert bool(purifier.certify(guarded, "demo:1", sigma=0.1, **QUICK).notes) == warned


def test_what_was_cut_off_goes_on(tmp_path: Path, made: Certificates) -> None:
    def stop(done: float, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    guarded = purifier.guard(trained("net"), "demo-plain")
    with pytest.raises(KeyboardInterrupt):
        purifier.certify(guarded, "demo:12", sigma=0.1, **QUICK, out=tmp_path, progress=stop)
    assert torch.is_grad_enabled()
    assert (tmp_path / JOURNAL).exists() and not (tmp_path / "certificates.json").exists()
    with pytest.raises(OutputError, match="journal of another audit that was cut off: smoothing.sigma was 0.1, is 0.2"):
        purifier.certify(guarded, "demo:12", sigma=0.2, **QUICK, out=tmp_path)
    asked = []
    run = type(guarded).forward
    type(guarded).forward = lambda self, *given, **named: (asked.append(1), run(self, *given, **named))[1]
    try:
        again = purifier.certify(guarded, "demo:12", sigma=0.1, **QUICK, out=tmp_path)
    finally:
        type(guarded).forward = run
    assert (again.answers, again.counts, again.radii) == (made.answers, made.counts, made.radii)
    assert len(asked) < 2 * 12 + 4  # two calls for each image that was left
    assert Certificates.load(tmp_path) == again and not (tmp_path / JOURNAL).exists()


def test_with_a_radius_fewer_copies_are_asked_and_the_table_ends_there(tmp_path: Path, made: Certificates) -> None:
    guarded = purifier.guard(trained("net"), "demo-plain")
    found = purifier.certify(guarded, "demo:12", sigma=0.1, samples=240, first=10, radius=0.05, out=tmp_path)
    assert sum(found.asked) < 12 * 240 and min(found.asked) < 100 and set(made.asked) == {60}
    for asked, count, radius in zip(found.asked, found.counts, found.radii, strict=True):
        assert radius > 0.05 or asked == 240 or count < 0.69 * asked
    assert found.steps() == [0, 0.05] and found.largest_radius == max(found.radii)
    assert (
        "up to 240 samples, until it is clear whether 0.05 is certified" in found.how
        and found.how in certified_plot(found)
    )
    assert Certificates.load(tmp_path) == found
    with pytest.raises(ConfigError, match="radius: for randomised smoothing only"):
        purifier.certify(guarded, "demo:1", radius=0.05)


def test_an_attack_within_the_radius_changes_no_answer(made: Certificates) -> None:
    """The smoothed model itself, asked at random places near the edge of each certified ball."""
    rng = np.random.default_rng(0)
    guarded = purifier.guard(linear(), "blur", image_shape=(3, 8, 8))
    images = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    data = purifier.ImageData("grey", images, torch.zeros(4, dtype=torch.int64))
    found = purifier.certify(guarded, data, sigma=0.05, samples=2000, first=50)
    assert isinstance(guarded, onnxruntime.InferenceSession) and any(found.radii)
    for index, (answer, radius) in enumerate(zip(found.answers, found.radii, strict=True)):
        pixels = data.batch([index])[0].numpy()
        for _ in range(20):
            change = rng.standard_normal(pixels.shape).astype(np.float32)
            moved = np.clip(pixels + 0.99 * radius * change / np.linalg.norm(change), 0, 1)
            copies = np.clip(moved + 0.05 * rng.standard_normal((400, *pixels.shape[1:])), 0, 1).astype(np.float32)
            votes = np.bincount(guarded.run(None, {guarded.input: copies})[0].argmax(1), minlength=5)
            assert answer == NO_ANSWER or votes[answer] > 150  # half of 400, and chance


def test_files_that_are_no_certificates_are_errors(tmp_path: Path, made: Certificates) -> None:
    with pytest.raises(FileError, match="cannot read .*certificates.json.*make it with `purifier certify --out`"):
        Certificates.load(tmp_path / "certificates.json")
    path = made.save(tmp_path)
    content = json.loads(path.read_text())
    for change, says in (
        ({"schema": 2}, "expected certificates of schema 1, got 2"),
        ({"radii": [1.0]}, "one certificate for each image"),
        ({"colour": 1}, "does not hold whole certificates"),
        ({"radii": ["a"] * 12}, "certificates that cannot be"),
        ({"radii": [-1.0] * 12}, "certificates that cannot be"),
        ({"method": "magic"}, "certificates that cannot be"),
        ({"norm": "l7"}, "certificates that cannot be"),
        ({"labels": [1.5] * 12}, "certificates that cannot be"),
        ({"counts": None}, "certificates that cannot be"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(FileError, match=says):
            Certificates.load(path)
    path.write_text("{")
    with pytest.raises(FileError, match="is not JSON"):
        Certificates.load(path)


def test_the_plot_is_xml_and_goes_down(made: Certificates) -> None:
    named = dataclasses.replace(made, data={**made.data, "name": "<b> & c"})
    picture = ElementTree.fromstring(certified_plot(named))
    (line,) = (one for one in picture.iter() if one.get("class") == "line")
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights == sorted(heights) and len(set(heights)) > 1
    assert any("<b> & c" in (one.text or "") for one in picture.iter())


def test_the_command_prints_a_table_and_writes_both_files(command, tmp_path: Path) -> None:
    line = ["certify", "--classifier", "demo", "--purifier", "demo-plain", "--data", "demo:4", "--sigma", "16/255"]
    line += ["--samples", "40", "--first", "5", "--out", str(tmp_path)]
    code, out, _ = command(*line)
    assert code == 0 and "right and certified, 4 images" in out and "for the smoothed guard" in out
    found = Certificates.load(tmp_path)
    assert found.sigma == 16 / 255 and found.command[:2] == ["purifier", "certify"]
    assert found.classifier["spec"] == "demo" and (tmp_path / "certificates.svg").read_text().startswith("<svg")
    code, _, err = command(*line)
    assert code == 2 and "certificates.json exists; replace it by --overwrite" in err
    code, out, _ = command(*line, "--radius", "4/255", "--overwrite")
    assert code == 0 and "up to 40 samples, until it is clear whether 0.0156863 is certified" in out
    code, _, err = command(*line[:8], "much", *line[9:], "--overwrite")
    assert code == 2 and "--sigma: expected a number such as 0.1 or 8/255, got 'much'" in err


def test_a_wrong_option_is_an_error_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="sigma"):
        purifier.certify("missing.onnx", "demo:4", sigma=-1)
