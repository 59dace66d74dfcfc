"""Conformance checks for plugin authors: call the one for your kind of plugin from your own tests.

A check that fails raises ``AssertionError``, which says which rule of the contract is broken and what was found.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from .attacking.attack import Attack
from .attacking.target import Target
from .attacking.threat import Threat
from .classifiers.pixel_classifier import TorchPixelClassifier
from .contracts.checkpoint import load, save
from .contracts.purifier import Purifier
from .data.pixels import Preprocessing
from .errors import PurifierError
from .foreign_code import Attempt, explained
from .guards.exporter import Exporter
from .guards.guard import Guard
from .guards.module import GuardedModule
from .onnx.front import example_images, noise_for
from .onnx.names import NOISE
from .seeding import SampleGenerator
from .specs import build
from .vocabulary import Needs


def check_purifier(
    purifier: Purifier, shape: tuple[int, int, int] = (1, 28, 28), *, tmp_path: Path | None = None
) -> None:
    """Check a purifier on random images of ``shape`` (C, H, W); with ``tmp_path`` also its checkpoint."""
    purifier.eval()
    pixels = _images(5, shape)
    before = pixels.clone()
    noise = purifier.draw(pixels, SampleGenerator(0, range(5)))
    purified = purifier.purify(pixels, noise)
    _check(purified.shape == pixels.shape, "purify must keep the shape", purified.shape)
    _check(purified.dtype == pixels.dtype, "purify must keep the dtype", purified.dtype)
    _check(bool(((purified >= 0) & (purified <= 1)).all()), "purify must stay in [0, 1]", _span(purified))
    _check(torch.equal(pixels, before), "purify must not change its input", "a changed input")
    again = purifier.purify(pixels, noise)
    _check(torch.equal(purified, again), "purify must be a pure function of pixels and noise", "a different result")
    singles = [purifier.purify(pixels[i : i + 1], None if noise is None else noise[i : i + 1]) for i in range(5)]
    _check(
        _close(purified, torch.cat(singles)),
        "an image's result must not depend on its batch",
        "a different result on its own",
    )
    if purifier.surrogate_purifies:
        _check(
            _close(purifier.surrogate(pixels, noise), purified),
            "surrogate must equal purify, as declared",
            "another result",
        )
    score = purifier.score(pixels)
    _check(score.shape == (5,) and bool(score.isfinite().all()), "score must be (N,) and finite", score)
    redrawn = purifier.draw(pixels, SampleGenerator(0, range(5)))
    same = redrawn is None if noise is None else redrawn is not None and torch.equal(noise, redrawn)
    _check(same, "draw must depend only on its generator", "a different draw from the same seed")
    _check_gradient(purifier, pixels, noise)
    _check_config(purifier)
    if tmp_path is not None:
        file = save(purifier, tmp_path / "conformance.safetensors")
        loaded = load(file)
        _check(
            _close(loaded.purify(pixels, noise), purified),
            "a saved and loaded purifier must be the same",
            "a different result",
        )


def check_attack(attack: Attack, *, norm: str = "linf", eps: float = 0.1) -> None:
    """Check an attack on a linear classifier: inputs unchanged, eps 0 the identity, seeds, batches, some success."""
    _check(attack.needs in get_args(Needs), "needs must be declared", getattr(attack, "needs", None))
    _check(norm in attack.norms, f"norms must contain {norm!r}", attack.norms)
    classifier = TorchPixelClassifier(_linear(48, 4), Preprocessing())
    pixels = _images(24, (3, 4, 4))
    labels = classifier(pixels).argmax(1)
    before = pixels.clone(), labels.clone()

    def run(threat: Threat, rows: slice, seed: int = 0) -> Tensor:
        indices = range(24)[rows]
        target = Target(
            classifier,
            _Unchanged(_NoConfig()),
            "exact" if attack.needs in ("gradient", "latent") else "none",
            SampleGenerator(seed + 1, indices),
        )
        found = attack.perturb(target, pixels[rows], labels[rows], threat, SampleGenerator(seed, indices))
        _check(found.shape == pixels[rows].shape, "perturb must keep the shape", found.shape)
        _check(bool(found.isfinite().all()), "perturb must give finite pixels", "NaN or infinity")
        return threat.project(found.detach(), pixels[rows])

    threat = Threat(norm, eps)  # type: ignore[arg-type]
    found = run(threat, slice(0, 24))
    same = torch.equal(pixels, before[0]) and torch.equal(labels, before[1])
    _check(same, "inputs must not change", "a change")
    _check(_close(run(Threat(norm, 0.0), slice(0, 24)), pixels), "eps 0 must be the identity", "a change")  # type: ignore[arg-type]
    _check(torch.equal(found, run(threat, slice(0, 24))), "one seed must give one result", "a different result")
    halves = torch.cat([run(threat, slice(0, 7)), run(threat, slice(7, 24))])
    _check(
        _close(found, halves),
        "an image's result must not depend on its batch",
        "a different result in smaller batches",
    )
    weak = threat.distance(found, pixels).max().item()
    _check(weak > 0, "the attack must change something on a linear classifier", "no change")
    wide = run(Threat(norm, 1.0 if norm == "linf" else 10.0), slice(0, 24))  # type: ignore[arg-type]
    fooled = (classifier(wide).argmax(1) != labels).float().mean().item()
    _check(fooled > 0.5, "with a huge budget most images of a linear classifier must be fooled", f"{fooled:.0%}")


def check_exporter(exporter: Exporter, guard: Guard, path: Path, **options: Any) -> None:
    """Check that an exporter reports correctly, and that a failed export raises an error and leaves no files.

    If ``path`` ends in ``.onnx``, it also runs in plain onnxruntime on the CPU, on random images in batches of 1, 2 and
    7 (or the classifier's batch size, if fixed). Its first output (for a module the guard's answer) must agree with the
    guard's to 0.001 of its scale, or 0.01 for images of less than 32 bits. A random purifier is compared
    without noise, or with ``noise="input"`` on one draw. The guard must take only its image; ``options`` go to the
    exporter.
    """
    report = exporter.export(guard, path, **options)
    _check(path.is_file(), "export must write to its path", "no file")
    _check(report.size == path.stat().st_size, "the report must contain the file's size", report.size)
    _check(bool(report.max_error), "an export must be verified", "no verified batch in the report")
    leftovers = [other.name for other in path.parent.iterdir() if other.suffix == ".tmp"]
    _check(not leftovers, "no temporary files may remain", leftovers)
    if path.suffix == ".onnx":
        _check_onnx(guard, path, options.get("image_shape"))
    before = {other: other.stat().st_size for other in path.parent.rglob("*")}
    rule = "an export to a path below a file must raise a PurifierError"
    with Attempt() as attempt:
        exporter.export(guard, path / path.name, **options)
    _check(isinstance(attempt.error, PurifierError), rule, repr(attempt.error or "none"))
    after = {other: other.stat().st_size for other in path.parent.rglob("*")}
    _check(before == after, "a failed export must leave no files", sorted(map(str, after.items() ^ before.items())))


@dataclasses.dataclass(frozen=True)
class _NoConfig:
    """No options."""


class _Unchanged(Purifier):
    Config = _NoConfig
    gradient = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels

    def latent_of(self, pixels: Tensor) -> Tensor:
        return pixels

    def decoded(self, latent: Tensor) -> Tensor:
        return latent.clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        # The inherited score would be 0 here and give attacks on a detector no gradient.
        return pixels.square().flatten(1).mean(1)


def _check_gradient(purifier: Purifier, pixels: Tensor, noise: Tensor | None) -> None:
    leaf = pixels.clone().requires_grad_()
    route = purifier.purify if purifier.gradient == "exact" else purifier.surrogate
    outcome = route(leaf, noise)
    _check(
        outcome.requires_grad,
        f"gradient={purifier.gradient!r} must be differentiable",
        "a result without a gradient",
    )
    # A constant weighting would hide a gradient that sums to zero.
    weights = _images(len(pixels), tuple(pixels.shape[1:]), seed=1)
    (gradient,) = torch.autograd.grad((outcome * weights).sum(), leaf)
    _check(bool(gradient.isfinite().all()), "gradients must be finite", "NaN or infinity")
    _check(bool(gradient.any()), f"gradient={purifier.gradient!r} must not be zero everywhere", "zeros")
    if purifier.gradient == "exact":
        # In doubles, a tiny step shows every jump. A purifier that computes in floats, or rounds to them, is checked at
        # a step that floats can resolve; a straight-through estimator fails there too, because its jumps are large.
        agrees = _follows_differences(purifier, pixels, noise, torch.float64, step=1e-7, tolerance=1e-2)
        agrees = agrees or _follows_differences(purifier, pixels, noise, torch.float32, step=1e-3, tolerance=5e-2)
        _check(agrees, "gradient='exact' must agree with finite differences of purify", "a different slope")


def _follows_differences(
    purifier: Purifier, pixels: Tensor, noise: Tensor | None, dtype: torch.dtype, *, step: float, tolerance: float
) -> bool:
    """Whether autograd's slopes along three directions agree with central differences; False if it cannot run."""
    inner = pixels[:2].to(dtype) * 0.9 + 0.05
    held = None if noise is None else noise[:2].to(dtype if noise.is_floating_point() else noise.dtype)
    leaf = inner.clone().requires_grad_()
    weights = _images(2, tuple(pixels.shape[1:]), seed=1).to(dtype)
    with Attempt() as attempt:
        moved = copy.deepcopy(purifier).to(dtype)
        outcome = moved.purify(leaf, held)
        (gradient,) = torch.autograd.grad((outcome * weights).sum(), leaf)
    if attempt.error is not None:
        return False
    length, floor = gradient.norm().item(), torch.finfo(dtype).eps / step * inner.numel() ** 0.5
    signs = [_images(2, tuple(pixels.shape[1:]), seed=seed).to(dtype).round() * 2 - 1 for seed in (3, 4)]
    for direction in (gradient / gradient.abs().max(), *signs):
        slope = (gradient * direction).sum().item()
        with torch.no_grad():
            there, back = (moved.purify(inner + way * step * direction, held) for way in (1, -1))
        difference = ((there - back) * weights).sum().item() / (2 * step)
        if not abs(slope - difference) <= tolerance * max(length, abs(slope)) + floor:
            return False
    return True


def _check_onnx(guard: Guard, path: Path, image_shape: tuple[int, int, int] | None) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    name = next(iter(inputs), "none") if isinstance(guard, GuardedModule) else guard.input
    _check(len(inputs.get(name, ())) == 4, "the file must take the guard's images", inputs)
    channels, *sides = image_shape or (None, None, None)
    wanted = (None, *sides, channels) if guard.preprocessing.layout == "NHWC" else (None, channels, *sides)
    shape = tuple(size if isinstance(size, int) else want for size, want in zip(inputs[name], wanted, strict=True))
    fixed = None if isinstance(guard, GuardedModule) else guard.image.shape[0]
    for count in (1, 2, 7) if fixed is None else (fixed,):
        images, _ = example_images(guard.purifier, guard.preprocessing, shape, count=count)
        feed = {name: images.numpy()}
        noise = None
        if NOISE in inputs:
            _check(isinstance(guard, GuardedModule), "noise as an input needs a torch guard", "a session")
            noise = noise_for(guard.purifier, guard.preprocessing.to_pixels(images).clamp(0, 1))
            feed[NOISE] = noise.numpy()
        names = [output.name for output in session.get_outputs()]
        which = guard.output.which
        wanted = (which, f"output_{which}", "logits") if isinstance(guard, GuardedModule) else ()
        with explained(f"the file must run at batch {count}", AssertionError):
            found = session.run([next((name for name in wanted if name in names), names[0])], feed)[0]
        expected = _answer(guard, images, noise)
        _check(found.shape == expected.shape, f"the file must answer as the guard at batch {count}", found.shape)
        # A guard abstains with NaN and infinity.
        finite = np.isfinite(expected)
        _check(
            np.array_equal(found[~finite], expected[~finite], equal_nan=True),
            f"the file must abstain as the guard at batch {count}",
            found[~finite],
        )
        off = np.abs(found[finite] - expected[finite]).max(initial=0.0)
        off /= np.abs(expected[finite]).max(initial=1.0)
        tolerance = 1e-3 if guard.preprocessing.dtype in ("float32", "float64") else 1e-2
        _check(
            bool(off <= tolerance), f"the file must answer as the guard at batch {count}", f"{off:.3g} off its scale"
        )


def _answer(guard: Guard, images: Tensor, noise: Tensor | None) -> np.ndarray[Any, Any]:
    if not isinstance(guard, GuardedModule):
        return np.asarray(guard.run(None, {guard.input: images.numpy()})[0], dtype=np.float64)
    quiet = copy.deepcopy(guard).cpu().eval()
    args, kwargs = ((images,), {}) if quiet.position == 0 else ((), {quiet.input: images})
    with torch.no_grad():
        output = quiet.answer(args, kwargs, quiet.pixels(args, kwargs), noise).output
    return quiet.output.find(output).double().numpy()


def _check_config(purifier: Purifier) -> None:
    config = purifier.config
    frozen = dataclasses.is_dataclass(config) and vars(type(config))["__dataclass_params__"].frozen
    _check(frozen, "config must be a frozen dataclass", type(config))
    back = build(type(config), json.loads(json.dumps(dataclasses.asdict(config))), what="config")
    _check(back == config, "config must survive JSON", back)


def _linear(features: int, classes: int) -> nn.Module:
    """A linear classifier that assigns images around mid-grey to all of its classes."""
    linear = nn.Linear(features, classes)
    with torch.no_grad():
        linear.weight.copy_(_images(classes, (features,), seed=2) - 0.5)
        linear.bias.copy_(-0.5 * linear.weight.sum(1))
    return nn.Sequential(nn.Flatten(), linear).eval()


def _images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, *shape), dtype=np.float32))


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _span(values: Tensor) -> str:
    return f"[{values.min().item():.4g}, {values.max().item():.4g}]"


def _check(holds: bool, rule: str, seen: object) -> None:
    if not holds:
        raise AssertionError(f"{rule}; got {seen}")
