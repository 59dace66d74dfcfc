"""The built-in purifiers: the conformance kit for each, then their own properties."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import purifier
from purifier.errors import ConfigError, PixelError
from purifier.seeding import SampleGenerator
from purifier.testing import check_purifier

GRAY = "image_shape=1x28x28"
SMALL = f"vae:{GRAY},channels=4,latent=8"


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("identity", (1, 28, 28)),
        ("identity", (3, 31, 17)),
        ("blur:sigma=0.7", (1, 28, 28)),
        ("blur:sigma=3", (3, 32, 32)),
        ("bit-depth:bits=3", (1, 28, 28)),
        (SMALL, (1, 28, 28)),
        (f"{SMALL},sample=true", (1, 28, 28)),
        (f"{SMALL},spatial=true,sample=true", (1, 28, 28)),
        (f"{SMALL},spatial=true,blocks=2", (1, 28, 28)),
        (f"{SMALL},blocks=1", (1, 28, 28)),
        (f"{SMALL},skip=true", (1, 28, 28)),
        ("vae:image_shape=1x27x25,channels=4,latent=3", (1, 27, 25)),
        (f"{SMALL},spatial=true,sample=true", (1, 31, 17)),
        (f"{SMALL},spatial=true,stem=4,depth=1,skip=true,blocks=1", (1, 33, 28)),
        (f"gm{SMALL},spatial=true,components=3,sample=true", (1, 28, 31)),
        ("vae:image_shape=3x32x32,channels=8,depth=3,latent=16", (3, 32, 32)),
        ("vae:image_shape=3x224x224,channels=4,depth=5,latent=8", (3, 224, 224)),
        ("vae:image_shape=3x224x224,channels=4,depth=3,latent=4,spatial=true", (3, 224, 224)),
        (f"{SMALL},score=reconstruction", (1, 28, 28)),
        (f"{SMALL},score=prior", (1, 28, 28)),
        (f"gm{SMALL}", (1, 28, 28)),
        (f"gm{SMALL},blocks=1", (1, 28, 28)),
        (f"gm{SMALL},components=3,strength=5,sample=true,labelled=true,score=prior", (1, 28, 28)),
        ("gmvae:image_shape=3x32x32,channels=8,depth=3,latent=7,strength=0,components=1", (3, 32, 32)),
        (f"certified:{GRAY},channels=4,hidden=8", (1, 28, 28)),
        ("certified:image_shape=3x31x17,classes=3,norm=l2,eps=0.5,channels=4,depth=3,hidden=8", (3, 31, 17)),
        ("latent:base=demo-plain", (1, 28, 28)),
        ("latent:base=demo-plain,preset=defense-gan,steps=5,restarts=3", (1, 28, 28)),
        ("latent:base=demo-plain,start=bank,bank=20,restarts=2,steps=3,beta=0.1", (1, 28, 28)),
        ("latent:base=vae:image_shape=3x32x32,steps=2,truncate=2,loop=true", (3, 32, 32)),
    ],
)
def test_conformance(spec: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    check_purifier(purifier.load(spec), shape, tmp_path=tmp_path)


def test_bit_depth_keeps_its_levels(images) -> None:
    pixels, _ = images
    assert purifier.load("bit-depth:bits=2").purify(pixels).unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    torch.testing.assert_close(purifier.load("bit-depth:bits=8").purify(pixels), pixels, atol=1e-6, rtol=0)


def test_blur_matches_scipys_gaussian(images) -> None:
    from scipy.ndimage import gaussian_filter

    pixels, _ = images
    expected = gaussian_filter(pixels[0, 0].numpy(), 1.5, mode="nearest", radius=4)
    torch.testing.assert_close(
        purifier.load("blur:sigma=1.5").purify(pixels[:1])[0, 0],
        torch.from_numpy(expected),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_blur_shows_the_gradient_of_black_and_white_images(grey: float) -> None:
    image = torch.full((1, 1, 28, 28), grey, requires_grad=True)
    purifier.load("blur:sigma=1.5").purify(image).sum().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(784.0))


def test_kl_term_agrees_with_torch_distributions(images) -> None:
    vae, (pixels, _) = purifier.load(SMALL), images
    mean, log_variance = vae.encode(pixels)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.loss(pixels, pixels, None)["kl"], expected.mean() / 784, rtol=1e-4, atol=1e-5)


def test_elbo_is_the_bound_estimated_by_sampling(images) -> None:
    """The mean over noise of -loss is E_q[log p(x|z) + log p(z) - log q(z|x)]."""
    vae, (pixels, _) = purifier.load(SMALL).train(), images
    pixels = pixels[:4]
    closed, sampled = [], []
    with torch.no_grad():
        mean, log_variance = vae.encode(pixels)
        posterior = Normal(mean, (log_variance / 2).exp())
        for draw in range(150):
            noise = vae.draw(pixels, SampleGenerator(draw, range(4)))
            terms = vae.loss(pixels, pixels, noise)
            closed.append(-784 * (terms["reconstruction"] + terms["kl"]))
            z = mean + posterior.scale * noise
            log_likelihood = (
                -F.binary_cross_entropy(vae.purify(pixels, noise), pixels, reduction="none").flatten(1).sum(1)
            )
            ratio = (Normal(0.0, 1.0).log_prob(z) - posterior.log_prob(z)).sum(1)
            sampled.append((log_likelihood + ratio).mean())
    difference = torch.stack(sampled) - torch.stack(closed)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference)) + 1e-3


def test_noise_moves_a_sampling_vae_and_no_noise_is_the_mean(images) -> None:
    pixels, _ = images
    torch.manual_seed(0)
    vae = purifier.load(f"{SMALL},sample=true")
    noise = vae.draw(pixels, SampleGenerator(0, range(64)))
    assert noise.shape == (64, 8)
    assert not torch.equal(vae.purify(pixels, noise), vae.purify(pixels))
    torch.testing.assert_close(vae.purify(pixels, torch.zeros_like(noise)), vae.purify(pixels))
    quiet = purifier.load(SMALL)
    assert quiet.draw(pixels, SampleGenerator(0, range(64))) is None
    assert quiet.train().draw(pixels, SampleGenerator(0, range(64))) is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vae", "needs the option 'image_shape'"),
        ("vae:image_shape=1x27x27,depth=5", "too small: a stem of 1 and a depth of 5 need .* 32 pixels .*depth to 4$"),
        (
            "vae:image_shape=1x27x7,stem=4",
            "stem of 4 and a depth of 2 need .* 16 pixels .*resize the images, or lower stem",
        ),
        ("vae:image_shape=1x28x28,stem=0", "depth, latent and stem must be positive"),
        ("vae:image_shape=1x28x28,free_nats=-1", "free_nats must be a number of at least 0"),
        ("vae:image_shape=1x28x28,latent=0", "must be positive"),
        ("vae:image_shape=1x28x28,depth=100000000000", "expected a depth of at most 16"),
        ("vae:image_shape=1x28x28,blocks=-1", "blocks must be from 0 to 1000, got -1"),
        ("vae:image_shape=1x28x28,channels=1024,blocks=1000", "these options give 1.79e\\+10 weights"),
        ("vae:image_shape=1x28x131072", "images of at most 65536 pixels a side, got depth 2 and 28x131072"),
        ("vae:image_shape=1x28x28,channels=1000000000", r"give 6.4e\+19 weights, expected at most 1e\+09"),
        ("vae:image_shape=1x28x28,latent=100000", "lower channels or latent"),
        ("blur:sigma=0", "sigma must be in"),
        ("bit-depth:bits=9", "bits must be from 1 to 8"),
        ("identity:x=1", "has no option 'x'"),
    ],
)
def test_impossible_configurations_are_errors(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        purifier.load(spec)


def test_images_of_another_size_are_errors() -> None:
    with pytest.raises(PixelError, match=r"expected images \(N, 1, 28, 28\), got \(2, 3, 28, 28\)"):
        purifier.load(SMALL).purify(torch.zeros(2, 3, 28, 28))


def test_a_filter_without_weights_cannot_be_trained(images) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        purifier.load("identity").loss(*images, None)
