"""What of a folder of ONNX classifiers can be guarded, exported and opened again, file by file.

``python tests/benchmarks/zoo_table.py FOLDER [--purifier SPEC ...] [--save]`` guards every ``.onnx`` and ``.ort`` file
behind each purifier, compares the session with a plain ONNX Runtime session on the purified images, exports it, opens
the exported file in a plain session, and compares again. Then the exported file is given a bad image: it may get no
answer (NaN, -1 or an empty string), and the other images of the batch must get the same as before. It prints a Markdown
table. ``--save`` also writes the rows to
``results/measured/onnx-zoo.json``, from which ``benchmarks_page.py`` makes the table in ``docs/onnx.md``.

A cell says ``ok``; ``refused`` with the reason, where the error is a ``PurifierError``; ``FAILED`` with what went wrong
otherwise. Settings that a file needs, because it leaves a choice open, are in ``SETTINGS`` and in the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from figures import MEASURED, measured_table
from zoo_bad_image import bad_image_problem

import purifier
from purifier.foreign_code import Attempt, is_purifier_error

DEFAULT = ("blur", "vae:image_shape=3x224x224,channels=8,depth=4,latent=8,spatial=true")
SIDE, CPU = 224, ["CPUExecutionProvider"]
FREE_CHANNELS = {"image_shape": (3, SIDE, SIDE)}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "resnet18_old13_chw": FREE_CHANNELS,
    "t_fp16_squeezenet_keepio": {"tolerance": 1e-3},
    "w_two_images": {"input": "image"},
}
"""Options of ``guard``, and ``tolerance`` of ``export``, for files that leave a choice open."""
COUNT = 2
ROUGH = re.compile(r"q(dyn|dq|op)|fp16|u8|int32|mb11")
"""Files that round, so that a difference of 1e-7 in a purified image can become a whole step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--purifier", action="append", help="PURIFIER spec; may be repeated")
    parser.add_argument("--only", default="*", help="pattern of the names of the files to take")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/onnx.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    purifiers = {spec.partition(":")[0]: purifier.load(spec) for spec in given.purifier or DEFAULT}
    rows = []
    for path in sorted(file for file in given.folder.glob(given.only) if file.suffix in (".onnx", ".ort")):
        row = {"file": f"`{path.stem if path.suffix == '.onnx' else path.name}`", "options": shown(path)}
        for name, chosen in purifiers.items():
            row |= {f"`{name}`": tried(path, chosen)}
        rows.append(row)
        print(*row.values(), sep=" | ", file=sys.stderr, flush=True)
    print(measured_table(rows))
    print("\n" + summary(rows))
    if given.save:
        save(rows)


def tried(path: Path, chosen: purifier.Purifier) -> str:
    """``ok``, or the step that did not work and why."""
    step = "guard"
    with tempfile.TemporaryDirectory() as folder, Attempt() as attempt:
        settings = dict(SETTINGS.get(path.stem, {}))
        checked = {"tolerance": settings.pop("tolerance")} if "tolerance" in settings else {}
        guarded = purifier.guard(path, chosen, providers=CPU, **settings)
        step = "run"
        feed = images_for(guarded)
        found = run(guarded, feed)
        expected = run(plain(path), {**feed, guarded.input: purified(guarded, feed[guarded.input])})
        if guarded.input in expected:  # an output that is the input gives the original image
            expected[guarded.input] = feed[guarded.input]
        problem = difference(expected, found, path.stem)
        if problem:
            return f"FAILED run: {problem}"
        step = "export"
        written = Path(folder) / "guarded.onnx"
        purifier.export(guarded, written, batches=(1, COUNT), **checked)
        step = "open the export"
        opened = plain(written)
        problem = difference(found, run(opened, feed), path.stem)
        if problem:
            return f"FAILED open the export: {problem}"
        step = "give the export a bad image"
        problem = bad_image_problem(
            guarded,
            lambda given: run(opened, given),
            feed,
            lambda wanted, got: difference(wanted, got, path.stem),
        )
        if problem:
            return f"FAILED {step}: {problem}"
    if attempt.error is None:
        return "ok"
    word = "refused" if is_purifier_error(attempt.error) else f"FAILED {type(attempt.error).__name__}"
    where = "" if step == "guard" else f" at {step}"
    return f"{word}{where}: {without_paths(str(attempt.error), path)}"


def plain(model: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=CPU)


def images_for(guarded: purifier.GuardedSession) -> dict[str, Any]:
    """Random pixels in the classifier's format, and random numbers for its other inputs."""
    shape = [size or (COUNT if place == 0 else SIDE) for place, size in enumerate(guarded.image.shape)]
    last = guarded.preprocessing.layout == "NHWC"
    if guarded.image.shape[3 if last else 1] is None:
        shape[3 if last else 1] = 3
    generator = torch.Generator().manual_seed(0)
    sizes = [shape[place] for place in ((0, 3, 1, 2) if last else (0, 1, 2, 3))]
    pixels = torch.nn.functional.interpolate(
        torch.rand((sizes[0], sizes[1], 7, 7), generator=generator), size=sizes[2:], mode="bilinear"
    )
    feed: dict[str, Any] = {guarded.input: guarded.preprocessing.to_classifier(pixels).numpy()}
    for value in guarded.get_inputs():
        if value.name not in feed:
            free = [size if isinstance(size, int) else sizes[0] for size in value.shape]
            numbers = np.random.default_rng(0).uniform(0.5, 2, free)
            feed[value.name] = numbers.astype({"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.type])
    return feed


def purified(guarded: purifier.GuardedSession, images: Any) -> Any:
    way = guarded.preprocessing
    with torch.no_grad():
        return way.to_classifier(guarded.purifier.purify(way.to_pixels(torch.from_numpy(images)).clamp(0, 1))).numpy()


def run(session: onnxruntime.InferenceSession, feed: Mapping[str, Any]) -> dict[str, Any]:
    values = session.run(None, dict(feed))
    return dict(zip([value.name for value in session.get_outputs()], values, strict=True))


def difference(expected: Mapping[str, Any], found: Mapping[str, Any], name: str) -> str:
    """What differs between outputs, or nothing."""
    if list(expected) != list(found):
        return f"outputs {list(found)}, expected {list(expected)}"
    tolerance = 0.1 if ROUGH.search(name) else 1e-3
    for output, wanted in expected.items():
        got = found[output]
        if isinstance(wanted, np.ndarray) and np.issubdtype(wanted.dtype, np.floating):
            scale = max(float(np.abs(wanted).max()), 1e-6)
            error = float(np.abs(got.astype(float) - wanted.astype(float)).max()) / scale
            if not error <= tolerance:
                return f"{output} differs by {error:.2g} of its scale"
        elif isinstance(wanted, np.ndarray):
            if not np.array_equal(wanted, got):
                return f"{output} is {got}, expected {wanted}"
        elif not np.allclose(flat(wanted), flat(got), rtol=tolerance, atol=tolerance):
            return f"{output} differs"
    return ""


def flat(value: Any) -> list[float]:
    """The numbers in a sequence or map, with the keys."""
    if isinstance(value, Mapping):
        return [float(number) for pair in sorted(value.items()) for number in pair]
    if isinstance(value, list):
        return [number for part in value for number in flat(part)]
    return [float(number) for number in np.asarray(value).reshape(-1)]


def without_paths(message: str, path: Path) -> str:
    """One line for a table cell, without the folder of this machine."""
    line = " ".join(message.replace(str(path), path.name).split()).replace("|", "\\|")
    return re.sub(r"\S*/tmp\w*/", "", line)[:300]


def shown(path: Path) -> str:
    return ", ".join(f"{key}={value}" for key, value in SETTINGS.get(path.stem, {}).items())


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])[2:]
    counts = []
    for column in columns:
        cells = [row[column] for row in rows]
        ok, failed = cells.count("ok"), sum(cell.startswith("FAILED") for cell in cells)
        counts.append(f"{column}: {ok} ok, {len(cells) - ok - failed} refused, {failed} failed, of {len(cells)}")
    return "; ".join(counts)


def save(rows: Sequence[Mapping[str, Any]]) -> None:
    versions = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, torch {torch.__version__}"
    source = {
        "command": ["python tests/benchmarks/zoo_table.py FOLDER --save"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": versions,
        "date": date.today().isoformat(),
        "note": f"{summary(rows)}. The folder's files are made with timm, torchvision and onnxruntime.",
    }
    text = json.dumps({"source": source, "tables": {"files": list(rows)}}, indent=1) + "\n"
    (MEASURED / "onnx-zoo.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
