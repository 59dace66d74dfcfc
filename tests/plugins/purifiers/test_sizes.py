"""Latent maps take images of any size; sizes, skips, and what follows for loss and score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

import purifier
from purifier.contracts import checkpoint
from purifier.contracts.purifier import Purifier, image_shape_of, purifiers
from purifier.errors import ConfigError, PixelError

MAP = "image_shape=3x32x32,channels=4,latent=3,spatial=true"
LARGE = f"vae:{MAP},stem=4,depth=1,blocks=1"


@pytest.fixture
def photo() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 41, 50)


def stirred(spec: str) -> Purifier:
    """A purifier whose last layer is not zero, so that a skip changes something."""
    torch.manual_seed(1)
    made = purifier.load(spec)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.1)
    return made


@pytest.mark.parametrize("options", ["", ",stem=4,depth=1,context=true", ",stem=2,skip=true"])
def test_other_sizes_are_padded_by_their_border_and_cropped(options: str, photo: Tensor) -> None:
    made = stirred(f"vae:{MAP}{options}")
    block = made.config.granularity
    extended = F.pad(photo, (0, -50 % block, 0, -41 % block), mode="replicate")
    torch.testing.assert_close(made.purify(photo), made.purify(extended)[..., :41, :50])
    assert torch.equal(made.purify(photo), made.purify_and_score(photo)[0])


def test_a_vector_latent_takes_one_size_that_need_not_be_a_multiple() -> None:
    made = stirred("vae:image_shape=3x31x30,channels=4,latent=3")
    assert image_shape_of(made) == (3, 31, 30)
    assert made.purify(torch.rand(2, 3, 31, 30)).shape == (2, 3, 31, 30)
    with pytest.raises(PixelError, match=r"expected images \(N, 3, 31, 30\)"):
        made.purify(torch.rand(2, 3, 32, 32))


def test_a_map_refuses_other_channels(photo: Tensor) -> None:
    with pytest.raises(PixelError, match=r"expected images \(N, 3, H, W\), got \(2, 1, 41, 50\)"):
        purifier.load(LARGE).purify(photo[:, :1])


@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_a_new_purifier_with_a_skip_changes_nothing(plugin: str, photo: Tensor) -> None:
    photo[0, 0, 0], photo[1, 1, 1] = 0, 1
    made = purifier.load(f"{plugin}:{MAP},skip=true")
    assert torch.equal(made.purify(photo), photo)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5)).eval()
    assert torch.equal(purifier.guard(classifier, made)(photo), classifier(photo))


def test_a_new_purifier_with_a_skip_learns(photo: Tensor) -> None:
    made = purifier.load(f"{LARGE},skip=true").train()
    sum(made.loss(photo, 1 - photo, None).values()).backward()
    assert made.decoder.layers[-2].weight.grad.abs().sum() > 0


def test_a_decoder_that_needs_the_image_has_no_latent_space(photo: Tensor, tmp_path: Path) -> None:
    made = purifier.load(f"vae:{MAP},skip=true")
    with pytest.raises(ConfigError, match="no latent space: its decoder also needs the image"):
        made.decoded(made.latent_of(photo))
    file = tmp_path / "skip.safetensors"
    checkpoint.save(made, file)
    with pytest.raises(ConfigError, match="latent space; Vae has none, because its decoder also needs the image"):
        purifier.load(f"latent:base={file}")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval()
    data = (torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match="latent-match': .* Vae has none, because its decoder also needs the image"):
        purifier.audit(purifier.guard(classifier, made), data, attacks=["latent-match"], eps=0.1)


def test_latent_refuses_a_base_that_pads() -> None:
    with pytest.raises(ConfigError, match=r"sides that are multiples of 4, got \(1, 27, 27\)"):
        purifier.load("latent:base=vae:image_shape=1x27x27")


@pytest.mark.parametrize("score", ["elbo", "prior", "reconstruction"])
@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_scores_do_not_depend_on_how_often_an_image_is_tiled(plugin: str, score: str) -> None:
    """Of an image without structure, so that the seams look like everything else."""
    made = stirred(f"{plugin}:{MAP},score={score}")
    grey = torch.full((1, 3, 32, 32), 0.3)
    inner = made.purify(grey)
    assert abs(inner.diff(dim=2)).max() < 0.2
    once, more = made.score(grey), made.score(grey.repeat(1, 1, 4, 4))
    torch.testing.assert_close(more, once, rtol=0.1, atol=0.0)


def test_the_losses_of_a_size_are_means_over_its_values() -> None:
    made = stirred(LARGE)
    grey = torch.full((1, 3, 32, 32), 0.3)
    once, more = made.loss(grey, grey, None), made.loss(grey.repeat(1, 1, 4, 4), grey.repeat(1, 1, 4, 4), None)
    for name, value in once.items():
        torch.testing.assert_close(more[name], value, rtol=0.1, atol=0.0)


def test_a_skips_likelihood_is_the_gaussian_of_half_a_range(photo: Tensor) -> None:
    made = stirred(f"vae:{MAP},skip=true")
    small = photo * 0.5 + 0.25
    target = torch.rand_like(small)
    mean = small + made.decoder(made.encode(small)[0])[..., :41, :50]
    expected = -Normal(mean, 0.5).log_prob(target).mean()
    torch.testing.assert_close(made.loss(small, target, None)["reconstruction"], expected)


def test_free_nats_are_paid_by_no_dimension(photo: Tensor) -> None:
    images = F.pad(photo, (0, 2, 0, 3))
    free, plain = stirred(f"vae:{MAP},free_nats=0.7"), stirred(f"vae:{MAP}")
    mean, log_variance = plain.encode(images)
    each = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean((0, 2, 3))
    expected = each.clamp(min=0.7).sum() * mean[0, 0].numel() / images[0].numel()
    torch.testing.assert_close(free.loss(images, images, None)["kl"], expected)
    assert (each < 0.7).any()


def test_a_mixture_on_a_map_is_one_prior_for_every_position(photo: Tensor) -> None:
    made = stirred(f"gmvae:{MAP},components=2")
    mixture = made.prior
    factors = torch.linalg.inv(mixture.whitening)
    parts = MultivariateNormal(mixture.means, scale_tril=factors)
    prior = MixtureSameFamily(Categorical(mixture.log_pi.exp()), parts)
    mean, log_variance = made.encode(photo)
    expected = prior.log_prob(mean.permute(0, 2, 3, 1)).sum((1, 2))
    torch.testing.assert_close(made.log_prior(mean), expected, rtol=1e-4, atol=1e-3)
    leaf = mean.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(made.log_prior(leaf).sum(), leaf)
    torch.testing.assert_close(made.prior_gradient(mean), gradient, rtol=1e-4, atol=1e-4)
    rows = [made.settle(mean[..., at : at + 1, :1], log_variance[..., at : at + 1, :1]) for at in range(3)]
    torch.testing.assert_close(made.settle(mean, log_variance)[..., :3, :1], torch.cat(rows, 2))


def test_draws_from_a_mixture_on_a_map_follow_it_at_every_position() -> None:
    made = stirred(f"gmvae:{MAP},components=2")
    torch.manual_seed(2)
    drawn = made.sample_prior(torch.randn(4000, 3, 2, 2), torch.rand(4000))
    shares = made.prior.log_pi.exp()
    centre = (shares[:, None] * made.prior.means).sum(0)
    for position in drawn.flatten(2).unbind(2):
        torch.testing.assert_close(position.mean(0), centre, atol=0.08, rtol=0)


def test_classes_need_a_latent_vector() -> None:
    with pytest.raises(ConfigError, match="labelled=true needs a latent vector"):
        purifier.load(f"gmvae:{MAP},labelled=true")


@pytest.mark.parametrize("options", ["", ",stem=4,depth=1,skip=true,blocks=1", ",sample=true,score=prior"])
@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_one_exported_file_takes_every_size(plugin: str, options: str, tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images).mean((2, 3))

    torch.manual_seed(0)
    classifier = Pooled().eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    file = tmp_path / "free.onnx"
    torch.onnx.export(
        classifier, (torch.rand(2, 3, 40, 44),), file, dynamo=True, dynamic_shapes=(sizes,), verbose=False
    )
    made = stirred(f"{plugin}:{MAP}{options}").eval()
    session = purifier.guard(file, made, score=True)
    purifier.export(session, tmp_path / "guarded.onnx")
    exported = onnxruntime.InferenceSession(tmp_path / "guarded.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((32, 32), (201, 161), (9, 17)):
        images = torch.rand(3, 3, height, width)
        purified, score = made.purify_and_score(images)
        name = exported.get_inputs()[0].name
        for run in (session.run, exported.run):
            answers, scores = run(None, {name: images.numpy()})
            np.testing.assert_allclose(answers, classifier(purified).detach().numpy(), atol=2e-5)
            np.testing.assert_allclose(scores, score.detach().numpy(), rtol=2e-4)


@pytest.mark.parametrize("size", ["tiny", "small", "base", None])
@pytest.mark.parametrize(("side", "stem"), [(28, 1), (64, 2), (224, 4)])
def test_suggested_sizes_fit_their_images(size: str | None, side: int, stem: int) -> None:
    kind = purifiers.get("vae").Config
    found = kind.suggested((3, side, side + 1), size)
    config = kind(image_shape=(3, side, side + 1), **found)
    assert config.stem == stem
    if side == 28 and size is None:
        assert found == {}
    else:
        assert config.spatial
