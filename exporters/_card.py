"""The card of an exported file: what it is, what it costs, and what it is worth."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from purifier.atomic import atomic_write
from purifier.errors import OutputError
from purifier.onnx.runtime import CPU, open_session

from ._saving import digest, size_of
from ._verify import Candidate, Verifier

FORMAT = 1
CALLS, WARM_UP = 30, 5


def card_path(path: Path) -> Path:
    """Where the card of an exported file is."""
    return path.with_name(f"{path.name}.json")


def check_card(path: Path) -> None:
    """Raise ``OutputError`` if the place of the card is taken by something that is none."""
    place = card_path(path)
    if not place.exists() and not place.is_symlink():
        return
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "purifier_card" not in found:
        raise OutputError(
            f"{place} exists and is no card of an exported file, which would be written there; choose another name, or "
            "remove it",
            place,
        )


def make_card(
    verifier: Verifier,
    batch: int | None,
    *,
    weights: Path | None,
    facts: Mapping[str, Any],
    judged: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that is known about the file of ``verifier``, as JSON values; ``facts`` come after its name and size."""
    file, path, session = verifier.file, verifier.path, verifier.session
    beside = None
    if weights is not None:
        beside = {"file": weights.name, "bytes": weights.stat().st_size, "sha256": digest(weights)}
    return {
        "purifier_card": FORMAT,
        "file": path.name,
        "bytes": size_of(file, weights),
        "sha256": digest(file),
        "external_data": beside,
        **facts,
        "inputs": [_described(value) for value in session.get_inputs()],
        "outputs": [_described(value) for value in session.get_outputs()],
        "latency": latency(file, verifier, batch or 1),
        "clean": None,
        "robust": None,
        **(judged or {}),
    }


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    atomic_write(card_path(path), json.dumps(card, indent=1, allow_nan=False) + "\n")


def latency(file: Path, verifier: Verifier, batch: int) -> dict[str, Any]:
    """The median time of a call with random images on the CPU, with as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = open_session(file, providers=[CPU], options=options)
    images = verifier.candidate.images(batch)
    feeds = verifier.feeds(images, _noise(verifier.candidate, images))
    times = []
    for _ in range(WARM_UP + CALLS):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return {
        "median_ms": round(1e3 * statistics.median(times[WARM_UP:]), 4),
        "batch": batch,
        "calls": CALLS,
        "provider": CPU,
        "threads": options.intra_op_num_threads,
        "onnxruntime": onnxruntime.__version__,
    }


def _noise(candidate: Candidate, images: torch.Tensor) -> torch.Tensor | None:
    return None if candidate.noise is None else candidate.noise(images)


def _described(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type, "shape": list(value.shape)}
