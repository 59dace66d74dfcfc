"""Gradients of a folder of ONNX classifiers, computed by torch, against ONNX Runtime and the torch originals.

``python tests/benchmarks/onnx_gradients.py FOLDER [--only PATTERN] [--no-times] [--save]`` makes a ``GraphModule`` of
every ``.onnx`` file and prints a Markdown table with

- ``logits``: the largest difference from ONNX Runtime, as a share of the range of its logits;
- ``along``: how far a random combination of the logits of ONNX Runtime rises on a path along the gradient, against the
  integral of the gradient over that path; the relative error. It holds for nets with kinks and, with a long path, for
  those that round;
- ``across``: the relative error of the gradient of the float64 module in a random direction, against its own finite
  differences: a part of the gradient that is missing shows there;
- ``by``: what was done where the net hardly reacts to its images, because its weights are random: the weights of its
  convolutions were multiplied by a number, or a value inside the graph stands for the logits;
- ``surrogate``: the operators whose gradient is straight-through;
- ``time``: a gradient in multiples of the time of the same torch model, where that is known.

A file is right if ``logits`` is at most 1e-3, or 0.05 if it rounds, ``along`` 0.02 or 0.2, ``across`` 0.02. ``--save``
also writes the rows to ``results/measured/onnx-gradients.json``, from which ``benchmarks_page.py`` makes a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from figures import MEASURED
from markdown_table import MISSING, markdown_table
from onnx import ModelProto
from torch import Tensor, nn
from zoo_table import SETTINGS, plain, without_paths

from gradient_errors import Case, error_across, error_along, random_like, sensitive, spread_of
from purifier.classifiers.graph.module import GraphModule
from purifier.data.preprocessing import Preprocessing
from purifier.foreign_code import Attempt, is_purifier_error
from purifier.onnx.feeding import example_values
from purifier.onnx.image_input import image_input, infer_preprocessing
from purifier.onnx.reader import load_onnx

SIDE, COUNT, TIMED = 224, 2, 4
DIFFERENCE, ROUGH_DIFFERENCE, ERROR, ROUGH_ERROR = 1e-3, 0.05, 0.02, 0.2
HALF = ("fp16",)
COLUMNS = ("file", "verdict", "logits", "along", "across", "by", "surrogate", "time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="pattern of the names of the files to take")
    parser.add_argument("--no-times", action="store_true", help="do not time gradients")
    parser.add_argument("--save", action="store_true", help="write the rows for docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for path in sorted(given.folder.glob(f"{given.only}.onnx")):
        rows.append([f"`{path.stem}`", *row_of(path, times=not given.no_times)])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(markdown_table(COLUMNS, rows))
    print("\n" + summary(rows))
    if given.save:
        save(rows)


def row_of(path: Path, *, times: bool) -> list[str]:
    with Attempt() as attempt:
        case, model = opened(path)
        return judged(path, case, model, times=times)
    assert attempt.error is not None
    word = "refused" if is_purifier_error(attempt.error) else f"FAILED {type(attempt.error).__name__}"
    return [f"{word}: {without_paths(str(attempt.error), path)}", *[MISSING] * 6]


def opened(path: Path) -> tuple[Case, ModelProto]:
    model = load_onnx(path)
    image = image_input(model, SETTINGS.get(path.stem, {}).get("input"))
    way = infer_preprocessing(image)
    usual = (COUNT, SIDE, SIDE, 3) if way.layout == "NHWC" else (COUNT, 3, SIDE, SIDE)
    shape = [size or other for size, other in zip(image.shape, usual, strict=True)]
    session = plain(path)
    others = example_values(session.get_inputs(), [image.name], shape[0])
    module = GraphModule(model, file=path.name)
    return Case(module, session, image.name, as_images(way, shape), way.scale, others), model


def as_images(way: Preprocessing, shape: Sequence[int]) -> Tensor:
    """Random pixels, smooth but for some noise, in the format of the graph, as floats."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape[place] for place in ((0, 3, 1, 2) if way.layout == "NHWC" else (0, 1, 2, 3))]
    smooth = torch.rand((sizes[0], sizes[1], 7, 7), generator=generator)
    pixels = torch.nn.functional.interpolate(smooth, size=sizes[2:], mode="bilinear")
    return way.to_classifier(0.7 * pixels + 0.3 * torch.rand(sizes, generator=generator)).float()


def judged(path: Path, case: Case, model: ModelProto, *, times: bool) -> list[str]:
    found, expected = case.by_torch(case.images.clone().requires_grad_()), case.by_runtime(case.images)
    answer = answer_of(found)
    if answer is None:
        return ["no logits: labels only", *[MISSING] * 6]
    ratio = time_ratio(path, case) if times else MISSING
    rough = bool(case.module.straight_through) or any(word in path.stem for word in HALF)
    difference = np.abs(found[answer].detach().double().numpy() - expected[answer]).max() / spread_of(expected[answer])
    case, answer, how = sensitive(case, model, answer)
    upstream = random_like(found[answer] if how == MISSING else case.by_torch(case.images)[answer])
    along = error_along(case, answer, upstream, rough)
    across = MISSING if rough else f"{error_across(case, answer, upstream):.0e}"
    right = difference <= (ROUGH_DIFFERENCE if rough else DIFFERENCE) and along <= (ROUGH_ERROR if rough else ERROR)
    right = right and (across == MISSING or float(across) <= ERROR)
    surrogate = ", ".join(case.module.straight_through) or MISSING
    return ["right" if right else "WRONG", f"{difference:.0e}", f"{along:.0e}", across, how, surrogate, ratio]


def answer_of(found: Mapping[str, Any]) -> str | None:
    """The first output with a gradient that has a row of numbers for each image."""
    fitting = (
        name
        for name, value in found.items()
        if isinstance(value, Tensor) and value.requires_grad and value.ndim == 2 and value.shape[1] > 1
    )
    return next(fitting, None)


def original(stem: str) -> nn.Module | None:
    """The torch model that a file of the zoo was exported from, with other random weights."""
    import timm
    import torchvision.models as vision

    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet18": vision.resnet18,
        "mobilenet_v3_small": vision.mobilenet_v3_small,
        "efficientnet_b0": vision.efficientnet_b0,
        "convnext_atto": lambda: timm.create_model("convnext_atto"),
        "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224"),
        "deit_tiny": lambda: timm.create_model("deit_tiny_patch16_224"),
        "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        "squeezenet": vision.squeezenet1_1,
        "densenet121": vision.densenet121,
        "shufflenet": vision.shufflenet_v2_x0_5,
        "vit_b16_tv": lambda: vision.VisionTransformer(224, 16, 2, 3, 192, 768),
        "t_ortext_resnet11": vision.resnet18,
        "t_ortext_squeezenet": vision.squeezenet1_1,
        "t_ortext_vit": lambda: timm.create_model("vit_tiny_patch16_224"),
        "t_tfopt_vit": lambda: timm.create_model("vit_tiny_patch16_224"),
        "t_ortext_mb11": vision.mobilenet_v3_small,
    }
    made = next((make for name, make in makers.items() if stem.startswith(name)), None)
    return None if made is None else made().eval().requires_grad_(False)


def time_ratio(path: Path, case: Case) -> str:
    """The shortest time of a gradient, divided by that of the torch model."""
    model = original(path.stem)
    if model is None:
        return MISSING
    count = TIMED if not path.stem.endswith("fix") else len(case.images)
    images = case.images[:1].repeat(count, 1, 1, 1)

    def seconds(call: Callable[[Tensor], Tensor]) -> float:
        leaf = images.clone().requires_grad_()
        began = time.perf_counter()
        torch.autograd.grad(call(leaf).sum(), leaf)
        return time.perf_counter() - began

    def ours(given: Tensor) -> Tensor:
        found: Tensor = next(iter(case.by_torch(given).values()))
        return found

    pairs = [(seconds(ours), seconds(model)) for _ in range(6)][1:]
    return f"{min(first for first, _ in pairs) / min(second for _, second in pairs):.2f}"


def summary(rows: Sequence[Sequence[str]]) -> str:
    judged_rows = [row for row in rows if row[1] in ("right", "WRONG")]
    rounding = [row for row in judged_rows if row[6] != MISSING]
    floats = [row for row in judged_rows if row[6] == MISSING]
    ratios = [float(row[7]) for row in judged_rows if row[7] != MISSING]
    times = f"; gradients take {min(ratios):.2f} to {max(ratios):.2f} times as long as torch's" if ratios else ""
    return (
        f"{sum(row[1] == 'right' for row in floats)} of {len(floats)} float files right, "
        f"{sum(row[1] == 'right' for row in rounding)} of {len(rounding)} that round, "
        f"{len(rows) - len(judged_rows)} refused or without logits{times}"
    )


def save(rows: Sequence[Sequence[str]]) -> None:
    versions = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, torch {torch.__version__}"
    source = {
        "command": ["python tests/benchmarks/onnx_gradients.py FOLDER --save"],
        "machine": f"one CPU core, {platform.machine()}",
        "versions": versions,
        "date": date.today().isoformat(),
        "note": f"{summary(rows)}. The folder's files are made with timm, torchvision and onnxruntime.",
    }
    files = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    text = json.dumps({"source": source, "tables": {"files": files}}, indent=1) + "\n"
    (MEASURED / "onnx-gradients.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
