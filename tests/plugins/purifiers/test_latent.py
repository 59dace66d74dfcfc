"""``latent`` as a purifier: starts, restarts, presets, determinism, its checkpoint, errors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import purifier
from purifier.contracts.checkpoint import read_tensors, write_tensors
from purifier.contracts.purifier import Purifier
from purifier.data.images import ImageData
from purifier.data.loading import load_data
from purifier.errors import CheckpointError, ConfigError, PixelError
from purifier.plugins.purifiers._descent import Settings
from purifier.seeding import SampleGenerator
from purifier.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vae.safetensors`` and ``gmvae.safetensors``, a little trained."""
    folder = tmp_path_factory.mktemp("bases")
    data = load_data("fashion-mnist:train:300")
    options = {"epochs": 3, "batch_size": 30, "lr": 5e-3}
    train("vae", data, folder / "vae.safetensors", config={"channels": 4, "latent": 6}, **options)
    train("gmvae", data, folder / "gmvae.safetensors", config={"channels": 4, "latent": 6, "components": 3}, **options)
    return folder


@pytest.fixture(scope="module")
def latent(folder: Path) -> Callable[[str], Purifier]:
    """``latent`` on the trained vae, with options."""
    return lambda options, base="vae": purifier.load(f"latent:base={folder / base}.safetensors,{options}")


@pytest.fixture(scope="module")
def pixels(images: tuple[Tensor, Tensor]) -> Tensor:
    return images[0][:12]


def energies(purified: Tensor, pixels: Tensor) -> Tensor:
    return (purified - pixels).square().flatten(1).sum(1)


@torch.no_grad()
def test_presets_are_settings_and_options_replace_single_ones(latent: Callable[[str], Purifier]) -> None:
    fast = Settings("encoder", 1, 12, "adam", 0.3, 0.0, 0.0)
    slow = Settings("random", 10, 200, "momentum", 10.0, 0.7, 0.0)
    assert latent("preset=fast").settings == latent("truncate=1").settings == fast
    assert latent("preset=defense-gan").settings == slow
    changed = latent("preset=defense-gan,steps=7,restarts=2,beta=0.5").settings
    assert changed == dataclasses.replace(slow, steps=7, restarts=2, beta=0.5)
    assert latent("optimizer=momentum,momentum=0").settings.momentum == 0


@torch.no_grad()
@pytest.mark.parametrize("options", ["", ",optimizer=momentum,lr=60,momentum=0.7", ",start=random,restarts=2"])
def test_more_steps_come_closer(latent: Callable[[str], Purifier], pixels: Tensor, options: str) -> None:
    found = [latent(f"steps={steps}{options}").score(pixels).mean() for steps in (1, 4, 20, 60)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.95 * found[0]


@torch.no_grad()
def test_the_shipped_vae_reconstructs_better_from_a_descended_latent() -> None:
    pixels, _ = load_data("demo:64").batch(range(64))
    plain, fast = purifier.load("demo-plain"), purifier.load("latent:base=demo-plain,preset=fast")
    before, after = energies(plain.purify(pixels), pixels), energies(fast.purify(pixels), pixels)
    assert after.mean() < 0.8 * before.mean()
    assert (after < before).float().mean() > 0.95


@torch.no_grad()
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_score_is_the_energy_of_the_purified_image(
    latent: Callable[..., Purifier], pixels: Tensor, beta: float
) -> None:
    made = latent(f"steps=3,beta={beta},start=random,restarts=2", "gmvae")
    noise = made.draw(pixels, SampleGenerator(0, range(12)))
    purified, score = made.purify_and_score(pixels)
    assert torch.equal(purified, made.purify(pixels)) and torch.equal(score, made.score(pixels))
    with_noise, same_score = made.purify_and_score(pixels, noise)
    assert torch.equal(with_noise, made.purify(pixels, noise)) and torch.equal(same_score, score)
    assert not torch.equal(with_noise, purified)
    if beta == 0:
        torch.testing.assert_close(score, energies(purified, pixels))
    else:
        assert (score > energies(purified, pixels)).all()  # log p(z) of 6 numbers is below 0


@torch.no_grad()
@pytest.mark.parametrize("start", ["random", "encoder"])
def test_the_restart_of_lowest_energy_is_kept(latent: Callable[[str], Purifier], pixels: Tensor, start: str) -> None:
    several = latent(f"steps=5,start={start},restarts=4")
    noise = several.draw(pixels, SampleGenerator(0, range(12)))
    assert noise is not None and noise.shape == (12, 3 + (start == "random"), 6)
    alone = latent("steps=5,start=random")
    images = [alone.purify(pixels, noise[:, i : i + 1]) for i in range(noise.shape[1])]
    if start == "encoder":
        images.append(latent("steps=5").purify(pixels))
    each = torch.stack([energies(image, pixels) for image in images])
    best = each.argmin(0)
    assert len(best.unique()) > 1, "these images tell nothing"
    torch.testing.assert_close(several.purify(pixels, noise), torch.stack(images)[best, torch.arange(12)])


@torch.no_grad()
def test_without_noise_every_image_has_the_same_fixed_starts(latent: Callable[[str], Purifier], pixels: Tensor) -> None:
    made = latent("steps=3,start=random,restarts=3")
    purified = made.purify(pixels)
    assert torch.equal(purified, made.purify(pixels))
    assert torch.equal(purified, latent("steps=3,start=random,restarts=3").purify(pixels))
    torch.testing.assert_close(made.purify(pixels.flip(0)), purified.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.purify(pixels, made.starts.expand(12, 3, 6)), purified)


@torch.no_grad()
@pytest.mark.parametrize("base", ["vae", "gmvae"])
def test_results_follow_seed_and_index_alone(latent: Callable[..., Purifier], fashion: ImageData, base: str) -> None:
    made = latent("steps=4,start=random,restarts=3", base)

    def purify(indices: Sequence[int], seed: int = 5) -> Tensor:
        pixels, _ = fashion.batch(indices)
        return made.purify(pixels, made.draw(pixels, SampleGenerator(seed, indices)))

    everything = purify(range(12))
    assert not torch.allclose(everything, purify(range(12), seed=6), atol=1e-3)
    backwards = purify(range(11, -1, -1)).flip(0)
    batches = torch.cat([purify(range(5)), purify(range(5, 6)), purify(range(6, 12))])
    halves = torch.empty_like(everything)
    halves[0::2], halves[1::2] = purify(range(0, 12, 2)), purify(range(1, 12, 2))
    for other in (backwards, batches, halves):
        torch.testing.assert_close(other, everything, atol=1e-4, rtol=0)
    pixels, _ = fashion.batch([3, 9])
    drawn = made.draw(pixels, SampleGenerator(5, [3, 9]))
    assert torch.equal(drawn[1], made.draw(pixels[1:], SampleGenerator(5, [9]))[0])
    assert not torch.equal(drawn[0], drawn[1])


@torch.no_grad()
def test_only_random_starts_are_drawn(latent: Callable[[str], Purifier], pixels: Tensor) -> None:
    generator = SampleGenerator(0, range(12))
    assert latent("preset=fast").draw(pixels, generator) is None
    assert latent("start=bank,bank=20,restarts=3").draw(pixels, generator) is None
    assert latent("restarts=3").draw(pixels, generator).shape == (12, 2, 6)
    assert latent("restarts=3,sample=false").draw(pixels, generator) is None


@torch.no_grad()
def test_random_starts_are_draws_of_the_prior(latent: Callable[..., Purifier]) -> None:
    made = latent("start=random", "gmvae")
    pixels = torch.zeros(4000, 1, 28, 28)
    drawn = made.draw(pixels, SampleGenerator(0, range(4000))).squeeze(1)
    prior = made.base.prior
    shares = prior.log_components(drawn).softmax(1).mean(0)
    torch.testing.assert_close(shares, prior.log_pi.exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.mean(0), prior.log_pi.exp() @ prior.means, atol=0.15, rtol=0)


@torch.no_grad()
def test_a_bank_gives_the_nearest_of_its_images(latent: Callable[[str], Purifier], pixels: Tensor) -> None:
    made = latent("start=bank,bank=50,steps=1,lr=1e-9")
    bank = torch.sigmoid(made.base.decoder(made.starts))
    assert bank.shape == (50, 1, 28, 28)
    distances = (pixels.unsqueeze(1) - bank).square().flatten(2).sum(2)
    torch.testing.assert_close(made.purify(pixels), bank[distances.argmin(1)], atol=1e-5, rtol=0)
    assert len(distances.argmin(1).unique()) > 2
    three = latent("start=bank,bank=50,steps=5,restarts=3")
    nearest = made.starts[distances.topk(3, largest=False).indices]
    expected = latent("start=random,restarts=3,steps=5").purify(pixels, nearest)
    torch.testing.assert_close(three.purify(pixels), expected, atol=1e-5, rtol=0)
    assert latent("start=bank,bank=500,steps=1").score(pixels).mean() < made.score(pixels).mean()


@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("vae", "steps=3"),
        ("gmvae", "steps=3,beta=0.3,start=random,restarts=3"),
        ("gmvae", "steps=2,start=bank,bank=30,restarts=2"),
    ],
)
def test_its_checkpoint_needs_no_base(folder: Path, tmp_path: Path, pixels: Tensor, base: str, options: str) -> None:
    copy = tmp_path / "base.safetensors"
    copy.write_bytes((folder / f"{base}.safetensors").read_bytes())
    made = purifier.load(f"latent:base={copy},{options}")
    file = purifier.save(made, tmp_path / "latent.safetensors")
    copy.unlink()
    torch.manual_seed(1)
    loaded = purifier.load(str(file))
    assert torch.equal(loaded.purify(pixels), made.purify(pixels))
    assert torch.equal(loaded.score(pixels), made.score(pixels))
    assert loaded.config == made.config
    assert str(tmp_path).encode() not in file.read_bytes()
    again = purifier.load(str(purifier.save(loaded, tmp_path / "again.safetensors")))
    assert torch.equal(again.purify(pixels), made.purify(pixels))


def test_it_shares_the_frozen_weights_of_its_base(latent: Callable[[str], Purifier], folder: Path) -> None:
    base, made = purifier.load(str(folder / "vae.safetensors")), latent("preset=fast")
    assert all(torch.equal(value, made.state_dict()[f"base.{key}"]) for key, value in base.state_dict().items())
    assert not any(weight.requires_grad for weight in made.parameters())
    assert made.provenance["file"] == "vae.safetensors"


@pytest.mark.parametrize("base", ["identity", "blur:sigma=2"])
@pytest.mark.parametrize("preset", ["fast", "defense-gan"])
def test_a_base_without_decoder_is_an_error(base: str, preset: str) -> None:
    with pytest.raises(ConfigError, match=f"base must have a decoder, as vae and gmvae do; {base!r} is a"):
        purifier.load(f"latent:preset={preset},base={base}")


def test_bad_bases_are_errors(latent: Callable[[str], Purifier], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*none.safetensors; give the path of an existing file"):
        purifier.load(f"latent:base={tmp_path / 'none.safetensors'}")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="truncated, damaged or not safetensors"):
        purifier.load(f"latent:base={tmp_path / 'damaged.safetensors'}")
    nested = purifier.save(latent("steps=2"), tmp_path / "latent.safetensors")
    with pytest.raises(CheckpointError, match="base must be a vae or gmvae, not another latent"):
        purifier.load(f"latent:base={nested}")
    with pytest.raises(ConfigError, match=r"expected the base's image_shape \(1, 28, 28\), got \(3, 32, 32\)"):
        latent("image_shape=3x32x32")
    with pytest.raises(ConfigError, match="needs the option 'base'"):
        purifier.load("latent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("preset=slow", "one of fast, defense-gan"),
        ("steps=0", "steps must be from 1 to 10000 and restarts from 1 to 1000"),
        ("restarts=0", "steps must be from 1 to 10000 and restarts from 1 to 1000"),
        ("steps=10001", "steps must be from 1 to 10000 and restarts from 1 to 1000"),
        ("lr=0", r"expected lr above 0 and at most 10000, momentum in \[0, 1\) and beta >= 0"),
        ("lr=inf", "expected lr above 0"),
        ("lr=nan", "expected lr above 0"),
        ("momentum=1", r"momentum in \[0, 1\)"),
        ("beta=-1", "beta >= 0"),
        ("beta=nan", "beta >= 0"),
        ("start=bank,bank=0", r"bank must be from restarts \(1\) to 100000, got 0"),
        ("bank=7", "bank needs start=bank, got start=encoder"),
        ("sample=false", "sample=false needs random starts, but there are none"),
        ("start=bank,restarts=3,sample=false", "sample=false needs random starts"),
        ("momentum=0.5", "momentum needs optimizer=momentum, got optimizer=adam"),
        ("start=random,truncate=0", r"truncate must be from 1 to steps"),
        ("start=bank,bank=3,restarts=4", r"bank must be from restarts \(4\) to 100000, got 3"),
        ("truncate=13", r"truncate must be from 0 to steps \(12\), got 13"),
        ("truncate=-1", r"truncate must be from 0 to steps \(12\), got -1"),
        ("start=middle", "option 'start': expected"),
    ],
)
def test_impossible_configurations_are_errors(latent: Callable[[str], Purifier], options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latent(options)


def test_images_of_another_size_than_its_base_are_errors(latent: Callable[[str], Purifier]) -> None:
    for options in ("preset=fast", "start=random,restarts=2", "start=bank,bank=10"):
        made = latent(options)
        for route in (made.purify, made.score, made.surrogate):
            with pytest.raises(PixelError, match=r"expected images \(N, 1, 28, 28\), got \(2, 3, 32, 32\)"):
                route(torch.zeros(2, 3, 32, 32))


def test_training_is_an_error(latent: Callable[[str], Purifier], pixels: Tensor) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        latent("steps=1").loss(pixels, pixels, None)


@pytest.mark.parametrize("kind", ["pipe", "missing", "good"])
def test_a_file_may_not_name_another(folder: Path, tmp_path: Path, kind: str) -> None:
    path = purifier.save(purifier.load(f"latent:base={folder}/vae.safetensors"), tmp_path / "own.safetensors")
    other = folder / "vae.safetensors" if kind == "good" else tmp_path / "other.safetensors"
    if kind == "pipe":
        os.mkfifo(other)
    tensors, metadata = read_tensors(path)
    metadata["purifier"]["config"]["base"] = str(other)
    write_tensors(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="names another file"):
        purifier.load(path)


def test_random_starts_in_half_precision(folder: Path, pixels: Tensor) -> None:
    made = purifier.load(f"latent:base={folder}/gmvae.safetensors,start=random,restarts=2,steps=2")
    noise = made.draw(pixels, SampleGenerator(0, range(12)))
    halved = made.half().draw(pixels.half(), SampleGenerator(0, range(12)))
    torch.testing.assert_close(halved.float(), noise, atol=0.02, rtol=0.01)
