from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import purifier
from purifier.data.images import ImageData
from purifier.errors import CheckpointError, ConfigError, DataError, PixelError, PluginError, SpecError
from purifier.rejection.calibration import (
    CALIBRATION_KEY,
    Calibration,
    calibrate,
    calibration_of,
    rejected,
    threshold_of,
)
from scoring_purifiers import Bright, calibrated


def flat(values: list[float]) -> ImageData:
    """An image for each score that Bright is to give."""
    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).clone()
    return ImageData("flat", images, torch.zeros(len(values), dtype=torch.int64))


def shuffled(count: int) -> list[float]:
    return (torch.randperm(count, generator=torch.Generator().manual_seed(0)) / count).tolist()


@pytest.mark.parametrize(
    ("count", "fpr", "rank"),
    [(99, 0.05, 95), (99, 0.29, 71), (100, 0.05, 96), (19, 0.05, 19), (3, 0.5, 2), (1, 0.5, 1)],
)
def test_the_threshold_matches_split_conformal_prediction(count: int, fpr: float, rank: int) -> None:
    found = calibrate(Bright(), flat(shuffled(count)), fpr=fpr)
    assert found.threshold == pytest.approx((rank - 1) / count)
    assert (found.fpr, found.data, found.count) == (fpr, "flat", count)
    assert len(found.quantiles) == 101
    assert (found.quantiles[0], found.quantiles[100]) == pytest.approx((0, (count - 1) / count))
    assert found.quantiles[50] == pytest.approx((count - 1) / 2 / count)


def test_fresh_clean_images_are_rejected_as_often_as_promised(fashion) -> None:
    """The expectation over many draws of 99 images is at most 5%, and with ties rare just that."""
    pixels, labels = fashion.batch(range(4000))
    scorer = Bright()
    scores = scorer.score(pixels)
    rates = []
    for seed in range(60):
        order = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))
        chosen, rest = order[:99], order[99:]
        threshold = calibrate(scorer, ImageData("some", pixels[chosen], labels[chosen])).threshold
        rates.append(rejected(scores[rest], threshold).float().mean().item())
    mean = sum(rates) / len(rates)
    error = torch.tensor(rates).std().item() / math.sqrt(len(rates))
    assert abs(mean - 0.05) < 3 * error
    assert error < 0.005


def test_a_calibration_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    vae = purifier.load("demo-plain")
    found = purifier.calibrate(vae, "demo:100", fpr=0.1, batch_size=33)
    assert calibration_of(vae) == found
    again = purifier.load(purifier.save(vae, tmp_path / "kept.safetensors"))
    assert calibration_of(again) == found
    assert threshold_of(again) == found.threshold
    pixels, _ = purifier.load_data("demo:100").batch(range(100))
    with torch.no_grad():
        assert rejected(again.score(pixels), found.threshold).sum().item() == 9  # 101 * 0.1, the threshold's own stays
    whole = calibrate(vae, "demo:100", fpr=0.1)
    assert whole.threshold == pytest.approx(found.threshold, rel=1e-5)


def test_calibration_leaves_the_purifier_unchanged() -> None:
    class Moody(Bright):
        def score(self, pixels: Tensor) -> Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return super().score(pixels)

    moody = Moody().train()
    calibrate(moody, flat(shuffled(40)))
    assert moody.training and moody.factor.requires_grad and moody.factor.grad is None
    seen: list[tuple[int, int, str]] = []
    calibrate(moody, flat(shuffled(40)), batch_size=15, progress=lambda *now: seen.append(now))
    assert seen == [(15, 40, "scores"), (30, 40, "scores"), (40, 40, "scores")]


def test_scores_of_half_precision_are_compared_as_floats() -> None:
    half = Bright().half()
    found = calibrate(half, flat(shuffled(40)), fpr=0.3)
    assert found.threshold == torch.tensor(found.threshold).half().item()
    images, _ = flat(shuffled(40)).batch(range(40))
    assert rejected(half.score(images.half()), found.threshold).sum() <= 12


def test_scores_above_the_threshold_nan_and_infinity_are_rejected() -> None:
    scores = torch.tensor([0.5, 0.50001, float("nan"), float("inf"), float("-inf")])
    assert rejected(scores, 0.5).tolist() == [False, True, True, True, False]


class Broken(Bright):
    answer: Any = None

    def score(self, pixels: Tensor) -> Tensor:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(pixels)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: pixels.flatten(1).mean(1) / 0, r"must return finite scores for .*, got NaN or infinity"),
        (lambda pixels: pixels.flatten(1).mean(1) * float("nan"), "NaN or infinity; check its weights"),
        (lambda pixels: pixels.mean(), r"must return scores \(40,\), got \(\)"),
        (lambda pixels: pixels, r"must return scores \(40,\), got \(40, 1, 28, 28\)"),
        (RuntimeError("no such kernel"), r"Broken fails to score images \(40, 1, 28, 28\) of flat .*no such kernel"),
    ],
)
def test_purifiers_without_finite_scores_are_errors(answer: Any, message: str) -> None:
    broken = Broken()
    broken.answer = answer
    with pytest.raises(PluginError, match=message):
        calibrate(broken, flat(shuffled(40)))
    assert CALIBRATION_KEY not in broken.provenance


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fpr": 0}, ConfigError, "fpr: expected a rate above 0 and below 1, such as 0.05, got 0"),
        ({"fpr": 1.0}, ConfigError, "got 1.0"),
        ({"fpr": float("nan")}, ConfigError, "got nan"),
        ({"fpr": "5%"}, ConfigError, "got '5%'"),
        (
            {"fpr": 0.001},
            ConfigError,
            "fpr 0.001 needs at least 999 clean images, got 40; give more images or a higher",
        ),
        ({"batch_size": 0}, ConfigError, "batch_size must be a whole number of at least 1, got 0"),
        ({"device": "meta"}, ConfigError, "device 'meta' cannot be used"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' cannot be used"),
        ({"data": 5}, ConfigError, "data: expected a DATA spec, ImageData, .*, got int"),
        ({"data": "nowhere"}, SpecError, "no data set 'nowhere'"),
        ({"data": "npz:nowhere.npz"}, DataError, "no file nowhere.npz"),
        (
            {"data": ImageData("large", torch.rand(40, 1, 32, 32), torch.zeros(40, dtype=torch.int64))},
            PixelError,
            r"large: expected images \(N, 1, 28, 28\), got \(40, 1, 32, 32\)",
        ),
        ({"purifier": "demo"}, ConfigError, "expected a purifier, got str"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"purifier": Bright(), "data": flat(shuffled(40)), **options}
    with pytest.raises(error, match=message):
        calibrate(given.pop("purifier"), given.pop("data"), **given)


def test_the_fewest_images_that_an_error_names_are_enough() -> None:
    with pytest.raises(ConfigError, match="needs at least 33 clean images"):
        calibrate(Bright(), flat(shuffled(32)), fpr=0.03)
    assert calibrate(Bright(), flat(shuffled(33)), fpr=0.03).count == 33


def test_a_threshold_without_calibration_is_an_error() -> None:
    assert calibration_of(Bright()) is None
    with pytest.raises(
        ConfigError, match="Bright has no threshold: .* `purifier calibrate PURIFIER --data SPEC --fpr 0.05 --out"
    ):
        threshold_of(Bright())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"threshold": "high"}, "'threshold' cannot be high"),
        ({"threshold": float("nan")}, "'threshold' cannot be nan"),
        ({"threshold": 1e300}, "'threshold' cannot be"),
        ({"threshold": -(10**400)}, "'threshold' cannot be"),
        ({"fpr": 5}, "'fpr' cannot be 5"),
        ({"fpr": True}, "'fpr' cannot be True"),
        ({"count": 0}, "'count' cannot be 0"),
        ({"data": None}, "'data' cannot be None"),
        ({"quantiles": [1.0]}, "'quantiles' cannot be"),
        ({"quantiles": [1.0] * 100 + [0.0]}, "'quantiles' cannot be"),
        ({"quantiles": 7}, "expected five entries"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_damaged_metadata_is_an_error(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    vae = calibrated(purifier.load("demo-plain"))
    stored = copy.deepcopy(dict(vae.provenance[CALIBRATION_KEY])) | damage
    path = purifier.save(vae, tmp_path / "damaged.safetensors", calibration=stored)
    with pytest.raises(CheckpointError, match=rf"damaged.safetensors: its metadata is damaged: .*{message}"):
        calibration_of(purifier.load(path))
    vae.provenance = {**vae.provenance, CALIBRATION_KEY: "yes"}
    with pytest.raises(CheckpointError, match="expected five entries, got yes; calibrate it again"):
        threshold_of(vae)


def test_impossible_calibrations_are_errors() -> None:
    with pytest.raises(ConfigError, match="'quantiles' cannot be"):
        Calibration(0.05, 1.0, "demo", 300, (float("inf"),) * 101)
