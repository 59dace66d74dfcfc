"""The trained ``gmvae``: its ELBO against large-sample estimates, its scores, how it purifies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

import purifier
from purifier.contracts.purifier import Classifying, Purifier, Scheduled
from purifier.data.loading import load_data
from purifier.errors import ConfigError
from purifier.seeding import SampleGenerator
from purifier.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = "image_shape=1x28x28,channels=4,latent=6"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Purifier:
    """Four components, learned on 400 real images."""
    out = tmp_path_factory.mktemp("gmvae") / "gmvae.safetensors"
    config = {"channels": 4, "latent": 6, "components": 4}
    return train("gmvae", load_data("fashion-mnist:train:400"), out, config=config, epochs=4, batch_size=50, lr=3e-3)


@pytest.fixture(scope="module")
def pixels(images: tuple[Tensor, Tensor]) -> Tensor:
    return images[0][:6]


def with_weights(spec: str, weights: Purifier) -> Purifier:
    """A purifier with the weights that it shares with another."""
    made = purifier.load(spec)
    given = weights.state_dict()
    made.load_state_dict({key: given[key] for key in made.state_dict()})
    return made


def prior_of(gmvae: Purifier) -> MixtureSameFamily:
    mixture = gmvae.prior
    factors = torch.linalg.inv(mixture.whitening.detach())
    parts = MultivariateNormal(mixture.means.detach(), scale_tril=factors.tril())
    return MixtureSameFamily(Categorical(probs=mixture.log_pi.detach().exp()), parts)


def posterior_of(gmvae: Purifier, pixels: Tensor) -> Independent:
    mean, log_variance = gmvae.encode(pixels)
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


def nats(image: Tensor, target: Tensor) -> Tensor:
    """-log p(target | image), (N,)."""
    return F.binary_cross_entropy(image, target, reduction="none").flatten(1).sum(1)


@torch.no_grad()
def test_the_sampled_elbo_matches_its_large_sample_estimate(trained: Purifier, pixels: Tensor) -> None:
    posterior, prior = posterior_of(trained, pixels), prior_of(trained)
    losses, divergences = [], []
    for seed in range(200):
        noise = SampleGenerator(seed, range(6)).normal((6,), pixels)
        terms = {name: 784 * term for name, term in trained.loss(pixels, pixels, noise).items()}
        divergences.append(terms["kl"])
        losses.append(terms["kl"] + terms["reconstruction"])
    torch.manual_seed(0)
    z = posterior.sample((800,))
    ratio = posterior.log_prob(z) - prior.log_prob(z)
    likelihood = -torch.stack([nats(torch.sigmoid(trained.decoder(some)), pixels) for some in z])
    for found, expected in ((divergences, ratio), (losses, ratio - likelihood)):
        mine, theirs = torch.stack(found), expected.mean(1)
        error = (mine.var() / len(mine) + theirs.var() / len(theirs)).sqrt()
        assert abs(mine.mean() - theirs.mean()) < 4 * error + 1e-3
    # log p(x) by importance sampling lies above every ELBO (Burda et al. 2016, theorem 1).
    evidence = (likelihood - ratio).logsumexp(0) - math.log(len(z))
    assert evidence.mean() > -torch.stack(losses).mean()
    bound = trained.kl(*trained.encode(pixels))
    assert (bound > ratio.mean(0) - 4 * ratio.std(0) / math.sqrt(len(z))).all()


def test_with_one_component_the_kl_divergence_is_exact(trained: Purifier, pixels: Tensor) -> None:
    single = purifier.load(f"gmvae:{SIZE},components=1")
    single.encoder.load_state_dict(trained.encoder.state_dict())
    with torch.no_grad():
        single.prior.means.normal_()
        single.prior.off_diagonal.normal_()
    mean, log_variance = single.encode(pixels)
    factor = torch.linalg.inv(single.prior.whitening).tril()
    spread = torch.diag_embed((log_variance / 2).exp())
    expected = kl_divergence(
        MultivariateNormal(mean, scale_tril=spread), MultivariateNormal(single.prior.means[0], scale_tril=factor[0])
    )
    torch.testing.assert_close(single.kl(mean, log_variance), expected, rtol=1e-4, atol=1e-3)


def test_strength_0_equals_a_vae_of_the_same_weights(trained: Purifier, pixels: Tensor) -> None:
    vae = with_weights(f"vae:{SIZE}", trained)
    still = with_weights(f"gmvae:{SIZE},components=4,strength=0", trained)
    noise = SampleGenerator(0, range(6)).normal((6,), pixels)
    assert torch.equal(still.purify(pixels), vae.purify(pixels))
    assert torch.equal(still.purify(pixels, noise), vae.purify(pixels, noise))
    assert not torch.equal(trained.purify(pixels), vae.purify(pixels))


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_purifying_decodes_the_mean_of_the_product(trained: Purifier, pixels: Tensor, strength: float) -> None:
    """Against the integral of q(z|x) times the mixture's tempered components, by importance sampling."""
    made = with_weights(f"gmvae:{SIZE},components=4,strength={strength}", trained)
    posterior, mixture = posterior_of(made, pixels), prior_of(made)
    parts = mixture.component_distribution
    tempered = MultivariateNormal(parts.mean, covariance_matrix=parts.covariance_matrix / strength)
    prior = MixtureSameFamily(mixture.mixture_distribution, tempered)
    torch.manual_seed(0)
    z = posterior.sample((200_000,))
    weights = prior.log_prob(z).softmax(0)
    latent = (weights.unsqueeze(2) * z).sum(0)
    assert (1 / weights.square().sum(0) > 1000).all(), "too few samples bear weight for an answer"
    torch.testing.assert_close(made.purify(pixels), torch.sigmoid(made.decoder(latent)), atol=0.02, rtol=0)


@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
def test_scores_match_their_definitions(trained: Purifier, pixels: Tensor, plugin: str) -> None:
    made = {
        kind: with_weights(f"{plugin}:{SIZE},{'components=4,' * (plugin == 'gmvae')}score={kind}", trained)
        for kind in ("elbo", "reconstruction", "prior")
    }
    purified = made["elbo"].purify(pixels)
    change = (purified - pixels).square().flatten(1).mean(1)
    torch.testing.assert_close(made["reconstruction"].score(pixels), change)
    posterior = posterior_of(trained, pixels)
    standard = Independent(Normal(torch.zeros(6), torch.ones(6)), 1)
    prior = prior_of(trained) if plugin == "gmvae" else standard
    torch.testing.assert_close(made["prior"].score(pixels), -prior.log_prob(posterior.mean), rtol=1e-4, atol=1e-3)
    bound = made["elbo"].kl(*trained.encode(pixels))
    if plugin == "vae":
        torch.testing.assert_close(bound, kl_divergence(posterior, standard), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(made["elbo"].score(pixels), nats(purified, pixels) + bound, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("plugin", ["vae", "gmvae"])
@pytest.mark.parametrize("kind", ["elbo", "reconstruction", "prior"])
def test_purify_and_score_matches_both_calls(trained: Purifier, pixels: Tensor, plugin: str, kind: str) -> None:
    spec = f"{plugin}:{SIZE},{'components=4,' * (plugin == 'gmvae')}score={kind},sample=true"
    made = with_weights(spec, trained)
    noise = made.draw(pixels, SampleGenerator(0, range(6)))
    assert noise is not None
    for given in (None, noise):
        purified, score = made.purify_and_score(pixels, given)
        assert torch.equal(purified, made.purify(pixels, given))
        assert torch.equal(score, made.score(pixels))
    assert not torch.equal(made.purify(pixels, noise), made.purify(pixels))


def test_the_core_knows_it_as_scheduled_and_classifying(trained: Purifier, pixels: Tensor) -> None:
    assert isinstance(trained, Scheduled) and isinstance(trained, Classifying)
    assert not trained.uses_labels
    assert trained.draw(pixels, SampleGenerator(0, range(6))) is None
    with pytest.raises(ConfigError, match="components are not classes; train it with labelled=true"):
        trained.classify(pixels)
    labelled = purifier.load(f"gmvae:{SIZE},labelled=true")
    assert labelled.uses_labels
    torch.testing.assert_close(labelled.classify(pixels).exp().sum(1), torch.ones(6))
    labelled.fitted_in.fill_(1)
    with pytest.raises(ConfigError, match="labelled=true needs labels, got none"):
        labelled.loss(pixels, pixels, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("spatial=true,labelled=true", "labelled=true needs a latent vector.*leave spatial or labelled out"),
        ("components=0", "expected 1 or more components"),
        ("components=100000,latent=64", r"components \* latent\*\*2 <= 4194304, got 100000 and latent 64; lower one"),
        ("strength=-1", "strength must be from 0 to 10000, got -1"),
        ("strength=nan", "strength must be from 0 to 10000, got nan"),
        ("strength=inf", "strength must be from 0 to 10000, got inf"),
        ("floor=0", r"floor must be in \(0, 1\), got 0"),
        ("pretrain=1.5", r"fractions of the epochs in \[0, 1\], got 1.5 and 0.2"),
        ("warmup=-0.1", r"fractions of the epochs in \[0, 1\], got 0.4 and -0.1"),
        ("score=nothing", "one of elbo, reconstruction, prior"),
    ],
)
def test_impossible_configurations_are_errors(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        purifier.load(f"gmvae:image_shape=1x28x28,{options}")
