"""What a file is worth on images: how often it answers as the guard does, and how often under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from purifier.attacking.threat import Threat
from purifier.auditing.audit import audit
from purifier.data.images import ImageData
from purifier.errors import ConfigError, ExportError, PurifierError
from purifier.foreign_code import Attempt
from purifier.guards.guard import Guard
from purifier.onnx.limits import MAX_BYTES
from purifier.onnx.names import NOISE, REJECTED

from ._verify import Array, Candidate, Verifier

ATTACK, PROBES = "apgd-ce:steps=20", 6
"""The attack on the file, along its own gradients, and how many images its audit looks for flags with."""
BATCH = 32
LOST = -1
"""The class of an image without an answer."""


@dataclass(frozen=True)
class Judging:
    """The images that a file is judged on, and how."""

    data: ImageData
    places: Sequence[int]
    """Those of ``data`` that are judged."""
    threat: Threat
    sample: int
    """How many of them are attacked."""
    least: float
    """The smallest share of images that the file must answer as the guard does."""


def judge(verifier: Verifier, guard: Guard, judging: Judging, batch: int | None, size: int) -> dict[str, Any]:
    """``clean`` and ``robust`` of the card of a file that has ``size`` bytes with its weights.

    Raises
    ------
    ExportError
        File and guard agree on too few images, or nothing says which output of the file is its answer.
    ConfigError
        The images do not fit the guard, or there are fewer than its fixed ``batch``.
    """
    if not verifier.candidate.answer:
        raise ExportError(
            f"{verifier.path}: none of the outputs is sure to be the classifier's answer; choose it with output= "
            "(--output on the command line), or leave out data= (--data)",
            verifier.path,
        )
    parts = in_parts(judging.places, batch)
    theirs, ours = [], []
    for part in parts:
        images, _ = judging.data.batch(part)
        made = guard.preprocessing.to_classifier(images)
        noise = None if verifier.candidate.noise is None else verifier.candidate.noise(made)
        theirs.append(_classes(verifier, guard, verifier.expected(made, noise).outputs))
        ours.append(_classes(verifier, guard, verifier.found(made, noise)))
    places = [place for part in parts for place in part]
    expected, found = np.concatenate(theirs), np.concatenate(ours)
    clean = _clean(judging, places, expected, found)
    if clean["agreement"] < judging.least:
        raise ExportError(
            f"{verifier.path}: answers only {clean['agreement']:.2%} of {len(places)} images as the guard does, "
            f"expected {judging.least:.2%} or more; the file was not written; export with more precision, or accept "
            "less with min_agreement= (--min-agreement on the command line)",
            verifier.path,
        )
    if size > MAX_BYTES:
        missing = f"an audit reads files of up to {MAX_BYTES / 1e9:.1f} GB, and this has {size / 1e9:.1f} GB"
        return {"clean": clean, "robust": {"missing": missing}}
    return {"clean": clean, "robust": _robust(verifier, guard, judging, places, expected[:, 0])}


def in_parts(places: Sequence[int], batch: int | None) -> list[list[int]]:
    """Positions of images in batches, all of the fixed size if there is one.

    Raises
    ------
    ConfigError
        There are fewer images than that.
    """
    size = batch or BATCH
    parts = [[*places[start : start + size]] for start in range(0, len(places), size)]
    parts = [part for part in parts if batch is None or len(part) == batch]
    if not parts:
        raise ConfigError(
            f"data: expected at least one batch of {batch} images, got {len(places)}; give more images, or a smaller "
            "batch"
        )
    return parts


def check_images(data: ImageData, guard: Guard, candidate: Candidate) -> None:
    """Raise ``ConfigError`` unless the images have the shape that the file takes."""
    image = next(value for value in candidate.model.graph.input if value.name == candidate.input)
    sizes = [dim.dim_value or None for dim in image.type.tensor_type.shape.dim][1:]
    if guard.preprocessing.layout == "NHWC":
        sizes = [sizes[2], *sizes[:2]]
    if any(size is not None and size != got for size, got in zip(sizes, data.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ConfigError(
            f"data: expected images ({wanted}) (C, H, W), got {data.shape} from {data.name}; resize them (--resize, "
            "--crop), or give other data"
        )


def _classes(verifier: Verifier, guard: Guard, outputs: Any) -> Array:
    """(N, 2): the class of each image, and whether it is rejected, if that is an output."""
    answer = np.asarray(outputs[verifier.candidate.answer])
    rejected = np.asarray(outputs.get(REJECTED, np.zeros(len(answer), bool)))
    if guard.output.labels:
        return np.stack([answer.reshape(len(answer), -1)[:, 0].astype(object), rejected.astype(object)], 1)
    values = torch.from_numpy(answer).float()
    classes = guard.output.to_logits(values).argmax(1)
    classes[values.reshape(len(values), -1).isnan().any(1)] = LOST
    return np.stack([classes.numpy(), rejected.astype(np.int64)], 1)


def _clean(judging: Judging, places: Sequence[int], expected: Array, found: Array) -> dict[str, Any]:
    same = (expected == found).all(1)
    clean: dict[str, Any] = {"images": len(places), "agreement": float(same.mean())}
    if judging.data.labelled:
        labels = judging.data.labels[list(places)].numpy()
        clean["accuracy"] = float((found[:, 0] == labels).mean())
        clean["guard_accuracy"] = float((expected[:, 0] == labels).mean())
    return clean


def _robust(
    verifier: Verifier, guard: Guard, judging: Judging, places: Sequence[int], classes: Array
) -> dict[str, Any]:
    """The accuracy under attack on a sample, or agreement with the guard if there are no labels; or why not."""
    candidate = verifier.candidate
    if candidate.noise is not None:
        return {"missing": f"the file takes the input {NOISE}, which an audit does not draw"}
    if guard.output.labels:
        return {"missing": "the file answers with a class alone, which has no gradient"}
    chosen = [places[k] for k in torch.linspace(0, len(places) - 1, min(judging.sample, len(places))).long().tolist()]
    pixels, labels = judging.data.batch(chosen)
    if not judging.data.labelled:
        answers = dict(zip(places, classes.tolist(), strict=True))
        answered = [k for k, place in enumerate(chosen) if answers[place] != LOST]
        pixels, labels = pixels[answered], torch.tensor([answers[chosen[k]] for k in answered])
    with Attempt((PurifierError,)) as attempt:
        report = audit(
            onnx.load(verifier.file),
            ImageData(judging.data.name, pixels, labels),
            norm=judging.threat.norm,
            eps=judging.threat.eps,
            attacks=[ATTACK],
            probes=PROBES,
            preprocessing=guard.preprocessing,
            input=candidate.input,
            output=candidate.answer,
            output_kind=guard.output.kind,
            feed=candidate.feed.values or None,
        )
    if attempt.error is not None:
        return {"missing": str(attempt.error)}
    row = next(row for row in report.rows if row.threat is not None)
    clean = next(row for row in report.rows if row.threat is None)
    if row.result is None or clean.result is None:
        return {"missing": f"{ATTACK} failed: {row.error}"}
    return {
        "images": row.result.count,
        "labels": "of the data" if judging.data.labelled else "the guard's answers",
        "threat": str(row.threat),
        "attack": row.attack,
        "route": row.route,
        "clean": clean.result.share,
        "accuracy": row.result.share,
        "interval": list(row.result.interval),
        "flags": sorted({flag.name for flag in report.flags}),
    }
