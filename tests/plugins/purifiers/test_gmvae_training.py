"""Training ``gmvae``: its stages, resume, labels, living components, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from purifier.contracts import checkpoint
from purifier.contracts.purifier import Purifier, purifiers
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import TrainingError
from purifier.plugins.purifiers.gmvae import Gmvae, GmvaeConfig
from purifier.training.loop import train
from purifier.training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 2, "latent": 4, "components": 3}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("fashion-mnist:train:160")


class Stopped(Exception):
    """Stands for a kill in the middle of an epoch."""


def read_log(out: Path) -> list[dict[str, dict[str, float]]]:
    lines = out.with_name(f"{out.stem}.log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1:]


def same(one: Purifier, other: Purifier) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def too_late(now: Progress) -> None:
    raise AssertionError(f"training went on to {now}")


@pytest.mark.parametrize(
    ("epochs", "options", "fitted_in"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (3, {"pretrain": 0}, 1),
        (3, {"pretrain": 1}, 3),
        (5, {}, 3),
        (2, {"labelled": True, "components": 10}, 2),
    ],
)
def test_the_mixture_is_fitted_in_its_epoch(
    data: ImageData, tmp_path: Path, epochs: int, options: dict[str, object], fitted_in: int
) -> None:
    out = tmp_path / "p.safetensors"
    config = {**SMALL, **options}
    most = config["components"]
    trained = train("gmvae", data, out, config=config, epochs=epochs, batch_size=64)
    assert trained.fitted_in == fitted_in
    entries = read_log(out)
    assert [entry["epoch"] for entry in entries] == list(range(1, epochs + 1))
    live = [entry["figures"]["live_components"] for entry in entries]
    assert live[: fitted_in - 1] == [most] * (fitted_in - 1) and all(1 <= count <= most for count in live)
    assert trained.provenance["metrics"]["live_components"] == trained.prior.live == live[-1]


def test_the_mixtures_weight_grows(data: ImageData) -> None:
    """Before the fit the divergence is that from N(0, I); after it the mixture's, from a third to the whole."""
    torch.manual_seed(0)
    gmvae = Gmvae(GmvaeConfig(image_shape=(1, 28, 28), channels=2, latent=3, components=3))
    pixels, _ = data.batch(range(50))
    mean, log_variance = gmvae.encode(pixels)
    standard = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 784
    found = []
    for epoch in range(1, 11):
        gmvae.begin_epoch(epoch, 10, data)
        found.append(gmvae.loss(pixels, pixels, torch.ones(50, 3))["kl"])
    assert gmvae.fitted_in == 5
    torch.testing.assert_close(torch.stack(found[:4]), standard.expand(4))
    torch.testing.assert_close(torch.stack(found[4:]) / found[-1], torch.tensor([1 / 3, 2 / 3, 1, 1, 1, 1]))
    assert abs(found[-1] - standard) > 1e-3 / 784


@torch.no_grad()
@pytest.mark.parametrize("labelled", [False, True])
def test_the_mixture_is_fitted_to_the_latents(labelled: bool) -> None:
    """Two kinds of images, black and white, and an encoder that keeps them apart."""
    torch.manual_seed(0)
    gmvae = Gmvae(GmvaeConfig(image_shape=(1, 4, 4), channels=1, latent=2, components=2, labelled=labelled))
    labels = torch.arange(200) % 2
    data = ImageData("two", labels[:, None, None, None].expand(200, 1, 4, 4).float(), labels)
    mean, _ = gmvae.encode(data.batch([0, 1])[0])
    head = gmvae.encoder.layers[-1]
    head.weight[:2] *= 10 / (mean[1] - mean[0]).unsqueeze(1)
    centres, log_variance = gmvae.encode(data.batch([0, 1])[0])
    gmvae.begin_epoch(1, 1, data)
    means = gmvae.prior.means
    order = [0, 1] if labelled else torch.cdist(centres, means).argmin(1).tolist()
    torch.testing.assert_close(means[order], centres, atol=0.5, rtol=0)
    torch.testing.assert_close(gmvae.prior.log_pi.exp(), torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)
    torch.testing.assert_close(gmvae.prior.scales[order], (log_variance / 2).exp(), atol=0.25, rtol=0)


@pytest.mark.parametrize(("stopped_in", "labelled"), [(3, False), (4, False), (4, True)])
def test_resume_is_bit_for_bit(data: ImageData, tmp_path: Path, stopped_in: int, labelled: bool) -> None:
    """Stopped in the epoch of the fit, and in the one after it."""
    config = {**SMALL, "components": 10 if labelled else 3, "labelled": labelled}
    options = {"config": config, "epochs": 5, "batch_size": 64, "lr": 3e-3}
    straight = train("gmvae", data, tmp_path / "straight.safetensors", **options)

    def stop(now: Progress) -> None:
        if now.epoch == stopped_in:
            raise Stopped

    out = tmp_path / "resumed.safetensors"
    with pytest.raises(Stopped):
        train("gmvae", data, out, **options, progress=stop)
    epochs: list[int] = []
    resumed = train("gmvae", data, out, **options, resume=True, progress=lambda now: epochs.append(now.epoch))
    assert sorted(set(epochs)) == list(range(stopped_in, 6))
    assert straight.fitted_in == resumed.fitted_in == 3
    assert same(straight, resumed)
    losses = [
        [entry["loss"] for entry in read_log(tmp_path / f"{name}.safetensors")] for name in ("straight", "resumed")
    ]
    assert losses[0] == losses[1]


def test_the_seed_decides_everything(data: ImageData, tmp_path: Path) -> None:
    def run(seed: int) -> Purifier:
        return train("gmvae", data, tmp_path / "p.safetensors", config=SMALL, epochs=1, seed=seed, overwrite=True)

    torch.manual_seed(1)
    one = run(3)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert same(one, run(3)) and not same(one, run(4))
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "training moved the caller's random stream"


def test_labels_give_each_class_a_component(tmp_path: Path) -> None:
    data = load_data("fashion-mnist:train:400")
    config = {"channels": 8, "latent": 8, "labelled": True}
    trained = train("gmvae", data, tmp_path / "p.safetensors", config=config, epochs=5, batch_size=20, lr=5e-3)
    pixels, labels = data.batch(range(400))
    with torch.no_grad():
        logarithms = trained.classify(pixels)
    torch.testing.assert_close(logarithms.exp().sum(1), torch.ones(400))
    assert (logarithms.argmax(1) == labels).float().mean() > 0.55
    shares = trained.prior.log_pi.exp()
    torch.testing.assert_close(shares, labels.bincount() / 400, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (range(10), {"components": 21}, "21 components need at least as many images, got 20 to fit; lower components"),
        (range(10), {"labelled": True, "components": 9}, "labels go up to 9 and components is 9; set components=10"),
        (
            range(10),
            {"labelled": True, "components": 11},
            "2 images of each class, got 0 of class 10 among the 20 it is fitted to; give",
        ),
        (
            (0, 1, 1, 1),
            {"labelled": True, "components": 3},
            "got 0 of class 2 among .*or set components to the number of",
        ),
        ((0, 0, 0, 1), {"labelled": True, "components": 2, "count": 4}, "got 1 of class 1"),
    ],
)
def test_errors_before_any_epoch(
    tmp_path: Path, data: ImageData, labels: Sequence[int], options: dict[str, object], says: str
) -> None:
    config = {**SMALL, **options}
    count = config.pop("count", 20)
    pixels, _ = data.batch(range(count))
    named = torch.tensor([*labels]).repeat(count // len(labels))
    with pytest.raises(TrainingError, match=f"gmvae: .*{says}"):
        train(
            "gmvae",
            ImageData("given", pixels, named),
            tmp_path / "p.safetensors",
            config=config,
            progress=too_late,
        )
    assert list(tmp_path.iterdir()) == []


class Explodes(Gmvae):
    """A gmvae whose loss is NaN from the epoch after the fit on."""

    def begin_epoch(self, epoch: int, epochs: int, data: ImageData) -> None:
        super().begin_epoch(epoch, epochs, data)
        self.bad = bool(self.fitted_in) and epoch > self.fitted_in

    def loss(
        self, pixels: Tensor, target: Tensor, noise: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms = super().loss(pixels, target, noise, labels)
        return {**terms, "kl": terms["kl"] * (math.nan if self.bad else 1)}


def test_a_run_that_goes_wrong_keeps_its_last_good_state(data: ImageData, tmp_path: Path) -> None:
    purifiers.register("explodes", Explodes)
    out = tmp_path / "p.safetensors"
    try:
        with pytest.raises(
            TrainingError, match=r"not finite at epoch \d, step \d .*lr below .*epoch \d is saved in .*epochs=\d"
        ) as stopped:
            train("explodes", data, out, config={**SMALL, "pretrain": 0.2}, epochs=3, batch_size=50)
    finally:
        purifiers.unregister("explodes")
    tensors, metadata = checkpoint.read_tensors(tmp_path / "p.train.safetensors")
    assert all(value.isfinite().all() for key, value in tensors.items() if key.startswith("weights."))
    kept = metadata["purifier.training"]["entry"]["epoch"]
    assert f"not finite at epoch {kept + 1}," in str(stopped.value) and f"epoch {kept} is saved" in str(stopped.value)
    assert [entry["epoch"] for entry in read_log(out)] == list(range(1, kept + 1))
    assert kept == tensors["weights.fitted_in"] == 2
    assert not out.exists()


def check_alive(data: ImageData, out: Path, seed: int, config: dict[str, int], **options: float) -> float:
    """The share of living components after training; weights and purified images must be finite."""
    trained = train("gmvae", data, out, config=config, seed=seed, **options)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    with torch.no_grad():
        assert trained.purify(data.batch(range(100))[0]).isfinite().all()
    assert all(math.isfinite(entry["loss"]) for entry in read_log(out))
    return read_log(out)[-1]["figures"]["live_components"] / config["components"]


@pytest.mark.parametrize("seed", [0, 1])
def test_components_stay_alive(tmp_path: Path, seed: int) -> None:
    data = load_data(f"fashion-mnist:train:{400 * seed}-{400 * seed + 400}")
    config = {"channels": 8, "latent": 8, "components": 10}
    assert check_alive(data, tmp_path / "p.safetensors", seed, config, epochs=5, batch_size=40, lr=3e-3) >= 0.8


@pytest.mark.slow
def test_components_stay_alive_for_20_seeds(tmp_path: Path) -> None:
    """Each on other 2000 images; minutes on one core."""
    config = {"channels": 8, "latent": 16, "components": 10}
    shares = {}
    for seed in range(20):
        data = load_data(f"fashion-mnist:train:{2000 * seed}-{2000 * seed + 2000}")
        shares[seed] = check_alive(data, tmp_path / "p.safetensors", seed, config, epochs=5, batch_size=128)
    assert min(shares.values()) >= 0.8, shares
