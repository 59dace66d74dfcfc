"""certify(): certificates for the answers of a guard, or of a classifier alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_writable
from ..auditing.data_digest import DataDigest
from ..auditing.facts import identify
from ..auditing.journal import Journal, opened
from ..auditing.preparing import Audited, Prepared, Request, budgets_of, prepare
from ..auditing.watching import Progress
from ..contracts.purifier import Purifier
from ..data.given import Data
from ..errors import ConfigError
from ..vocabulary import Norm, OutputKind
from .bounding import by_bounds
from .certificates import Certificates
from .smoothing import Smoothing, Vote

JOURNAL = "certificates.journal"
NEAR = 0.01
"""How far sigma may be from what a purifier was trained for, as a share of it."""
FACTS = ("versions", "classifier", "purifier", "on_reject", "data", "seed", "device")
"""What certificates say, of the facts that an audit records."""


def certify(
    guard: Audited,
    data: Data,
    *,
    sigma: float | None = None,
    samples: int | None = None,
    first: int | None = None,
    alpha: float | None = None,
    radius: float | None = None,
    norm: Norm | None = None,
    eps: float | Sequence[float] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    preprocessing: Any = None,
    input: int | str | None = None,
    output: int | str | None = None,
    output_kind: OutputKind = "logits",
    feed: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Certificates:
    """Certify a guard's answers: by its purifier's bounds, or with ``sigma`` by randomised smoothing.

    Bounds need a purifier that has them, such as ``certified``. They certify the guard itself, without samples.

    Randomised smoothing (Cohen et al. 2019) only asks the guard, so any will do. The certificates, in l2, are for the
    smoothed guard: of many copies of an image with normal noise, the class that most get. They hold for every attack,
    known or not, and each with confidence 1 - ``alpha``. A copy that the guard rejects counts for no class. The guard's
    own noise, if it draws any, is drawn anew for each copy.

    Parameters
    ----------
    guard
        A guard, or a classifier alone: a torch module, an ONNX model or a MODEL spec.
    data
        As for ``purifier.audit``.
    sigma, samples, first, alpha, radius
        See ``purifier.certifying.smoothing.Smoothing``; all but the first are for smoothing only, and 1000, 100, 0.001
        and None by default. Without a purifier that was trained for noise of ``sigma``, few images are certified.
    norm
        For bounds: ``linf`` or ``l2``; by default what the purifier was trained for. Smoothing is in ``l2``.
    eps
        For bounds: budgets in pixel units that the table shows, and at which radii are exact; by default the one that
        the purifier was trained for.
    batch_size
        Images per call, or noisy copies; by default 250, or what fits into memory. The result does not depend on it,
        except for rounding.
    seed
        Random seed of the noise.
    device, root, preprocessing, input, output, output_kind, feed
        As for ``purifier.audit``.
    progress
        As for ``purifier.audit``; steps are images.
    out
        Folder for ``certificates.json``, and during smoothing for a journal: when it was cut off, the same call goes on
        with the images that are left.
    overwrite
        Give up what the journal of other certificates has.

    Raises
    ------
    ConfigError, SpecError, DataError, OutputError, AuditError, PluginError
        As for ``purifier.audit``; for options that can certify nothing; for bounds that the purifier does not have, and
        for a classifier that answers the purifier's components with other classes than they stand for.
    """
    given = {"samples": samples, "first": first, "alpha": alpha, "radius": radius}
    smoothing = _smoothing(sigma, given, norm, eps)
    budgets = [] if eps is None else budgets_of(eps)
    if out is not None:
        check_writable(out)
    request = Request(
        attacks=(),
        batch_size=batch_size,
        seed=seed,
        device=device,
        root=root,
        preprocessing=preprocessing,
        input=input,
        output=output,
        output_kind=output_kind,
        feed=feed,
    )
    began = time.perf_counter()
    with torch.no_grad(), ExitStack() as stack:  # the stack puts back what it found, so it ends first
        ready = prepare(stack, guard, data, request)
        about = identify(
            ready, DataDigest(ready.data, ready.setup.batch_size), range(len(ready.data)), None, keeps_adversarial=False
        )
        if smoothing is None:
            found = by_bounds(ready, norm, budgets, progress)
        else:
            header = {**about.to_json(), "smoothing": vars(smoothing)}
            header["facts"] = {name: header["facts"][name] for name in FACTS}
            path = None if out is None else Path(out, JOURNAL)
            journal = stack.enter_context(opened(path, header, overwrite=overwrite))
            found = _by_smoothing(ready, smoothing, _votes(ready, smoothing, journal, progress))
        made = Certificates(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=ready.setup.model,
            **{name: about.facts[name] for name in FACTS},
            **found,
            labels=ready.data.labels.tolist(),
            seconds=time.perf_counter() - began,
        )
        if out is not None:
            made.save(out)
            if smoothing is not None:
                Path(out, JOURNAL).unlink()
    return made


def _smoothing(sigma: float | None, given: Mapping[str, Any], norm: Norm | None, eps: object) -> Smoothing | None:
    """How to smooth, with the options of ``given`` that are not None; None to certify by bounds."""
    options = {name: value for name, value in given.items() if value is not None}
    if sigma is None:
        if options:
            raise ConfigError(f"{', '.join(options)}: for randomised smoothing only; give sigma, too, or leave it out")
        return None
    if norm not in (None, "l2") or eps is not None:
        raise ConfigError("sigma: smoothing finds radii in l2; leave norm and eps out, or leave sigma out")
    return Smoothing(sigma, **options)


def _by_smoothing(ready: Prepared, smoothing: Smoothing, votes: Sequence[Vote]) -> dict[str, Any]:
    """The fields of ``Certificates`` that come from votes."""
    return {
        "method": "smoothing",
        "norm": "l2",
        **{name: getattr(smoothing, name) for name in ("sigma", "samples", "first", "alpha")},
        "budgets": () if smoothing.radius is None else (smoothing.radius,),
        "largest_radius": smoothing.largest_radius if smoothing.radius is None else max(vote.radius for vote in votes),
        "notes": _notes(ready.parts.in_front, smoothing),
        "answers": [vote.answer for vote in votes],
        "counts": [vote.count for vote in votes],
        "asked": [vote.asked for vote in votes],
        "radii": [vote.radius for vote in votes],
    }


def _votes(ready: Prepared, smoothing: Smoothing, journal: Journal, progress: Progress | None) -> list[Vote]:
    """The votes on all images, those that a journal has and new ones."""
    setup, total, right = ready.setup, len(ready.data), 0
    subject, votes = setup.subjects[setup.model], list[Vote]()
    for index in range(total):
        if progress is not None:
            done = f", {right / index:.1%} right" if index else ""
            progress(index, total, f"{index} of {total} images{done}")
        kept = journal.read(f"image {index}")
        batch = setup.batch(ready.data, [index])
        if kept is None:
            vote = smoothing.vote(subject, batch.pixels[0], index, setup.seed, setup.batch_size)
            journal.write(f"image {index}", (vars(vote), {}))
        else:
            vote = Vote(**kept[0])
        right += vote.answer == int(batch.labels[0])
        votes.append(vote)
    if progress is not None:
        progress(total, total, f"{total} images")
    return votes


def _notes(purifier: Purifier | None, smoothing: Smoothing) -> list[str]:
    """What a reader should know about these certificates."""
    if purifier is None:
        return []
    trained = float(purifier.provenance.get("training", {}).get("options", {}).get("noise") or 0)
    if abs(trained - smoothing.sigma) <= NEAR * smoothing.sigma:
        return []
    learned = f"noise of {trained:g}" if trained else "no such noise"
    text = (
        f"the purifier was trained for {learned}, not for sigma={smoothing.sigma:g}, so expect few certificates; train "
        f"one with --recipe denoise:noise={smoothing.sigma:g}"
    )
    return [text]
