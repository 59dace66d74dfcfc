"""Whether the ways to ask a guard agree: what attacks differentiate must be what its user gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..answering import answer, draw, purify
from ..attacking.threat import Threat
from ..contracts.purifier import Classifying, Purifier
from ..seeding import SampleGenerator, mix_seed
from .comparing import exceeds_one_percent
from .probing import fresh, images_differ, logits_differ, moved, scores_differ
from .report import Flag
from .setup import AuditSetup, Batch

RUNTIMES = 5e-2
"""Tolerance where other kernels or another runtime compute: a descent in TF32 amplifies rounding errors."""


def flags_of_paths(setup: AuditSetup, batch: Batch, threats: Sequence[Threat]) -> Iterator[Flag]:
    """Compare the paths on the images and on places within the threats; each path is a copy that has seen nothing."""
    found: Counter[str] = Counter()
    places = [batch.pixels, *(moved(setup, batch, threat, "paths") for threat in threats)]
    for pixels in places:
        seed = mix_seed(setup.seed, "probe", "paths")
        noise = draw(fresh(setup)[1], pixels, SampleGenerator(seed, batch.indices))
        with torch.no_grad():
            found.update(dict(_of_purifier(setup, pixels, noise)))
            found.update(dict(_of_classifier(setup, pixels)))
            found.update(dict(_of_answers(setup, pixels, noise, seed, batch.indices)))
    total = len(places) * len(batch.indices)
    apart = {path: count for path, count in found.items() if exceeds_one_percent(count, total)}
    if apart:
        said = "; ".join(f"{path} ({count} of {total} images)" for path, count in apart.items())
        yield Flag("paths-disagree", said)


def _of_purifier(setup: AuditSetup, pixels: Tensor, noise: Tensor | None) -> Iterator[tuple[str, int]]:
    """Names of two paths through the purifier, and for how many images they differ."""
    if setup.model == "undefended":
        return
    plain, _ = purify(fresh(setup)[1], pixels, noise)
    classifier, _ = fresh(setup)

    def apart(image: Tensor) -> int:
        """How many images differ from the purified ones so much that the classifier notices."""
        noticed = logits_differ(classifier(plain), classifier(image), RUNTIMES)
        return _total(images_differ(plain, image) & noticed)

    image, score = purify(fresh(setup)[1], pixels, noise, scored=True)
    assert score is not None
    yield "purify and the image of purify_and_score", apart(image)
    alone = fresh(setup)[1].score(pixels)
    yield "score and the score of purify_and_score", _total(scores_differ(alone, score))
    with torch.enable_grad():
        tracked = fresh(setup)[1].purify(pixels.clone().requires_grad_(), noise).detach()
        scored = fresh(setup)[1].score(pixels.clone().requires_grad_()).detach()
    yield "purify with and without gradients", apart(tracked)
    yield "score with and without gradients", _total(scores_differ(alone, scored))
    if setup.rejection.on_reject == "reclassify" and isinstance(setup.purifier, Classifying):
        own, same = (copy for _, copy in (fresh(setup), fresh(setup)))
        assert isinstance(own, Classifying) and isinstance(same, Classifying)
        with torch.enable_grad():
            classes = same.classify(pixels.clone().requires_grad_()).detach()
        yield "classify with and without gradients", _total(logits_differ(own.classify(pixels), classes))
    if setup.purifier.surrogate_purifies and type(setup.purifier).surrogate is not Purifier.surrogate:
        yield "purify and surrogate", apart(fresh(setup)[1].surrogate(pixels, noise))


def _of_classifier(setup: AuditSetup, pixels: Tensor) -> Iterator[tuple[str, int]]:
    if setup.classifier.differentiable:
        plain = fresh(setup)[0](pixels)
        with torch.enable_grad():
            tracked = fresh(setup)[0](pixels.clone().requires_grad_()).detach()
        yield "the classifier with and without gradients", _answers_apart(setup, plain, tracked)


def _of_answers(
    setup: AuditSetup, pixels: Tensor, noise: Tensor | None, seed: int, indices: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """Compare the model's own answers with the logits that attacks see, on images that are not rejected."""
    classifier, purifier = fresh(setup)
    attacked = answer(purifier, classifier, pixels, noise, scored=setup.rejection.active)
    given = setup.subjects[setup.model].ask(pixels, seed, indices)
    accepted = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    logits = attacked.output
    if setup.rejection.answers and attacked.score is not None:
        logits = setup.rejection.replace(logits, setup.rejection.of(attacked.score), purifier, pixels)
    elif attacked.score is not None:
        rejected = setup.rejection.of(attacked.score)
        accepted = ~rejected
        if given.rejected is not None:
            yield "which images the guard and the attacked path reject", _total(rejected != given.rejected)
            accepted = accepted & ~given.rejected
    name = "the guard's answers and the logits that attacks see"
    if setup.model == "undefended":
        name = "the classifier's answers and the logits that attacks see"
    if accepted.any():
        yield name, _total(logits_differ(given.logits[accepted], logits[accepted], RUNTIMES))
    if setup.classifier.differentiable:
        with _as_used(setup):
            used = setup.subjects[setup.model].ask(pixels, seed, indices).logits.detach()
        yield (
            f"{name.split(' and ')[0]} as audited and with gradient mode on",
            _answers_apart(setup, given.logits, used),
        )


def _answers_apart(setup: AuditSetup, one: Tensor, other: Tensor) -> int:
    """How many images' logits differ, both (N, K).

    Where the classifier rounds, as in 8 bits, other kernels end up some of its steps apart, which is much of the range
    of the largest logits where it is unsure.
    """
    rounds = setup.classifier.differentiable and bool(setup.classifier.surrogates)
    return _total(logits_differ(one, other, RUNTIMES, one.shape[1]) if rounds else logits_differ(one, other))


@contextmanager
def _as_used(setup: AuditSetup) -> Iterator[None]:
    """As users usually ask: gradient mode is on and the weights require gradients, but the images do not."""
    weights = [weight for part in (setup.classifier, setup.purifier) for weight in part.parameters()]
    frozen = [weight for weight in weights if weight.is_floating_point() and not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _total(marks: Tensor) -> int:
    return int(marks.sum())
