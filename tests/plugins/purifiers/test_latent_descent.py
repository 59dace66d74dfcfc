"""The descent through a decoder: its hand-written gradient, its steps, and the gradient and memory of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import purifier
from purifier.contracts.purifier import Purifier
from purifier.plugins.purifiers import _descent
from purifier.plugins.purifiers._autoencoder import _with_pullback
from purifier.plugins.purifiers._descent import BETA1, BETA2, EPSILON, Descent, Settings
from purifier.plugins.purifiers._variational import Variational

pytestmark = pytest.mark.usefixtures("one_thread")

BASES = {
    "vae": "vae:image_shape=1x28x28,channels=4,latent=6",
    "gmvae": "gmvae:image_shape=1x28x28,channels=4,latent=6,components=3",
    "spatial": "vae:image_shape=1x28x28,channels=4,latent=2,spatial=true",
    "deep": "vae:image_shape=1x28x28,channels=3,latent=6,depth=1",
}


def base_of(kind: str) -> Variational:
    """A purifier with a strongly non-linear decoder; that of a new one is almost constant."""
    torch.manual_seed(0)
    made = purifier.load(BASES[kind])
    assert isinstance(made, Variational)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(weight * 2.5 if "coder" in name else torch.randn(weight.shape))
    return made.requires_grad_(False)


def settings(**given: Any) -> Settings:
    usual = {"start": "encoder", "restarts": 1, "steps": 4, "optimizer": "adam", "lr": 0.3, "momentum": 0.7}
    return Settings(**{**usual, "beta": 0.0, **given})


@pytest.fixture(scope="module")
def pixels(images: tuple[Tensor, Tensor]) -> Tensor:
    return images[0][:3]


def latents(base: Variational, count: int = 3) -> Tensor:
    return torch.randn(count, *base.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_written_gradient_matches_autograd_of_the_energy(kind: str, beta: float, pixels: Tensor) -> None:
    base = base_of(kind).double()
    descent, z = Descent(base, settings(beta=beta)), latents(base).double().requires_grad_()
    image, energy = descent.energy(pixels.double(), z)
    torch.testing.assert_close(image, torch.sigmoid(base.decoder(z)))
    squares = (image - pixels).square().flatten(1).sum(1)
    torch.testing.assert_close(energy, squares - beta * base.log_prior(z))
    (expected,) = torch.autograd.grad(energy.sum(), z)
    torch.testing.assert_close(descent.gradient(pixels.double(), z), expected)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.SiLU(), (5,)),
        (nn.Linear(5, 3), (5,)),
        (nn.Unflatten(1, (3, 2, 2)), (12,)),
        (nn.Conv2d(3, 2, 3, padding=1), (3, 4, 6)),
        (nn.Conv2d(3, 2, 1), (3, 4, 6)),
        (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (3, 4, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_pullback_of_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    given = torch.randn(2, *shape).requires_grad_()
    outcome, pull = _with_pullback(layer, given)
    torch.testing.assert_close(outcome, layer(given))
    gradient = torch.randn(outcome.shape)
    (expected,) = torch.autograd.grad(outcome, given, gradient)
    torch.testing.assert_close(pull(gradient), expected)


def test_a_layer_without_pullback_is_named() -> None:
    with pytest.raises(TypeError, match=r"no vector-Jacobian product is implemented for ReLU\(\)"):
        _with_pullback(nn.ReLU(), torch.zeros(1))


def by_optimizer(descent: Descent, pixels: Tensor, z: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    rate = optimizer.param_groups[0]["lr"]
    for index in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 if index < 0.8 * steps else 0.1)
        optimizer.zero_grad()
        descent.energy(pixels, z)[1].sum().backward()
        optimizer.step()
    return z.detach()


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_momentum_matches_torch(pixels: Tensor, steps: int) -> None:
    base = base_of("vae").double()
    descent = Descent(base, settings(optimizer="momentum", steps=steps, lr=20.0))
    start, x = latents(base).double(), pixels.double()
    found = descent.run(x, descent.begin(start), range(steps))[0]
    z = start.clone().requires_grad_()
    expected = by_optimizer(descent, x, z, torch.optim.SGD([z], lr=20.0 / 784, momentum=0.7), steps)
    torch.testing.assert_close(found, expected)
    assert (found - start).abs().max() > 0.05


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_adam_matches_torch_except_for_epsilon(pixels: Tensor, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("vae").double()
    descent = Descent(base, settings(steps=steps))
    start, x = latents(base).double(), pixels.double()
    damped = descent.run(x, descent.begin(start), range(steps))[0]
    monkeypatch.setattr(_descent, "EPSILON", 1e-9)
    found = descent.run(x, descent.begin(start), range(steps))[0]
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.3, betas=(BETA1, BETA2), eps=1e-9)
    torch.testing.assert_close(found, by_optimizer(descent, x, z, adam, steps), atol=1e-5, rtol=0)
    assert 0 < (damped - found).abs().max() < 0.3 * (found - start).abs().max()


@pytest.mark.parametrize("given", [{}, {"optimizer": "momentum", "lr": 60.0}], ids=["adam", "momentum"])
def test_an_image_of_the_decoder_is_found(given: dict[str, Any]) -> None:
    """The optimum is known: energy 0 at the latent that made the image."""
    base = base_of("vae").double()
    truth = latents(base).double()
    x = torch.sigmoid(base.decoder(truth))
    descent = Descent(base, settings(**{"steps": 200, "lr": 0.05, **given}))
    start = truth + 0.3
    z = descent.run(x, descent.begin(start), range(200))[0]
    assert (descent.energy(x, z)[1] < 1e-3 * descent.energy(x, start)[1]).all()
    assert ((z - truth).norm(dim=1) < 0.3 * (start - truth).norm(dim=1)).all()


@pytest.mark.parametrize("kind", ["vae", "gmvae"])
def test_beta_pulls_towards_the_prior(kind: str, pixels: Tensor) -> None:
    base = base_of(kind)
    densities, errors = [], []
    for beta in (0.0, 3.0, 100.0):
        descent = Descent(base, settings(steps=60, lr=0.1, beta=beta))
        z = descent.run(pixels, descent.begin(latents(base)), range(60))[0]
        densities.append(base.log_prior(z).mean())
        errors.append((torch.sigmoid(base.decoder(z)) - pixels).square().mean())
    assert densities[0] < densities[1] < densities[2] and errors[0] < errors[1] < errors[2]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Purifier]:
    """``latent`` on one of the bases, in float64."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in BASES:
        purifier.save(base_of(kind), folder / f"{kind}.safetensors")

    def build(kind: str, options: str) -> Purifier:
        return purifier.load(f"latent:base={folder / kind}.safetensors,{options}").double()

    return build


def unrolled(made: Any, pixels: Tensor, start: Tensor, first: int = 0) -> Tensor:
    """The descent once more, by autograd alone and keeping all; steps before ``first`` have no gradient."""
    used, base = made.settings, made.base
    shift, velocity, moment = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    for index in range(used.steps):
        at = start.detach() + shift if index < first else start + shift
        with torch.enable_grad():
            leaf = at if at.requires_grad else at.requires_grad_()
            image = torch.sigmoid(base.decoder(leaf))
            energy = (image - pixels).square().sum() - used.beta * base.log_prior(leaf).sum()
            (gradient,) = torch.autograd.grad(energy, leaf, create_graph=index >= first)
        rate = used.lr * (1 if index < 0.8 * used.steps else 0.1)
        if used.optimizer == "momentum":
            velocity = used.momentum * velocity + gradient
            change = rate * velocity / 784
        else:
            velocity = BETA1 * velocity + (1 - BETA1) * gradient
            moment = BETA2 * moment + (1 - BETA2) * gradient**2
            step = rate * math.sqrt(1 - BETA2 ** (index + 1)) / (1 - BETA1 ** (index + 1))
            change = step * velocity / (moment + EPSILON**2).sqrt()
        shift = shift - change
        if index < first:
            shift, velocity, moment = shift.detach(), velocity.detach(), moment.detach()
    return torch.sigmoid(base.decoder(start + shift))


def gradient_of(image: Tensor, leaf: Tensor) -> Tensor:
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    (gradient,) = torch.autograd.grad((image * weights).sum(), leaf)
    return gradient


OPTIONS = {
    "vae": "steps=5",
    "gmvae": "steps=4,beta=0.5",
    "spatial": "steps=3,optimizer=momentum,lr=20,momentum=0.7",
    "deep": "steps=3,start=random,beta=0.1",
}


@pytest.mark.parametrize("kind", BASES)
def test_the_exact_gradient_matches_the_unrolled_descent(latent: Any, kind: str, pixels: Tensor) -> None:
    made, leaf = latent(kind, OPTIONS[kind]), pixels.double().requires_grad_()
    start = made.starts[:1].expand(3, -1) if "random" in OPTIONS[kind] else made.base.encode(leaf)[0]
    found, expected = made.purify(leaf), unrolled(made, leaf, start)
    torch.testing.assert_close(found, expected)
    slope, reference = gradient_of(found, leaf), gradient_of(expected, leaf)
    torch.testing.assert_close(slope, reference)
    assert reference.abs().max() > 1e-3
    direction = slope.sign()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).double()
    ends = [(made.purify(leaf.detach() + way * direction) * weights).sum() for way in (1e-6, -1e-6)]
    assert (ends[0] - ends[1]).item() / 2e-6 == pytest.approx((slope * direction).sum().item(), rel=1e-4)


def test_the_gradient_through_several_restarts_is_that_of_the_best(latent: Any, pixels: Tensor) -> None:
    made, leaf = latent("vae", "steps=3,restarts=3"), pixels.double().requires_grad_()
    with torch.no_grad():
        value = made.purify(leaf)
    found = made.purify(leaf)
    torch.testing.assert_close(found, value)
    starts = [made.base.encode(leaf)[0], *(made.starts[i : i + 1].expand(3, -1) for i in range(2))]
    images = [unrolled(made, leaf, start) for start in starts]
    energies = torch.stack([(image - leaf).square().flatten(1).sum(1) for image in images])
    best = torch.stack(images)[energies.argmin(0), torch.arange(3)]
    torch.testing.assert_close(found, best)
    torch.testing.assert_close(gradient_of(found, leaf), gradient_of(best, leaf))


@pytest.mark.parametrize(
    ("start", "truncate"), [*(("encoder", last) for last in (0, 1, 2, 4)), *(("random", last) for last in (1, 4))]
)
def test_the_surrogate_differentiates_the_last_steps(latent: Any, start: str, truncate: int, pixels: Tensor) -> None:
    made, leaf = latent("gmvae", f"steps=4,beta=0.2,start={start},truncate={truncate}"), pixels.double()
    leaf.requires_grad_()
    begun = made.base.encode(leaf)[0] if start == "encoder" else made.starts[:1].expand(3, -1)
    found, expected = made.surrogate(leaf), unrolled(made, leaf, begun, first=4 - truncate)
    torch.testing.assert_close(found, made.purify(leaf))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient_of(found, leaf), gradient_of(expected, leaf))
    if truncate == 4:
        torch.testing.assert_close(gradient_of(made.surrogate(leaf), leaf), gradient_of(made.purify(leaf), leaf))


class Allocated(TorchDispatchMode):
    """Remembers every storage that is made, to ask later which are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        for tensor in outcome if isinstance(outcome, tuple | list) else (outcome,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return outcome

    def held(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def test_memory_does_not_grow_with_the_steps(latent: Any, pixels: Tensor) -> None:
    def bytes_a_step(route: Callable[[Any, Tensor], Tensor]) -> float:
        found = []
        for steps in (4, 16):
            made, leaf = latent("vae", f"steps={steps}"), pixels.double().requires_grad_()
            with Allocated() as allocated:
                image = route(made, leaf)
                found.append(allocated.held())
            assert image.requires_grad
        return (found[1] - found[0]) / 12

    latent_bytes = 3 * 6 * 8
    mine = bytes_a_step(lambda made, leaf: made.purify(leaf))
    kept = bytes_a_step(lambda made, leaf: unrolled(made, leaf, made.base.encode(leaf)[0]))
    assert 2 * latent_bytes <= mine <= 8 * latent_bytes
    assert kept > 100 * latent_bytes
