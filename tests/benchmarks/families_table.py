"""Which families of torch classifiers can be guarded, and what works with the guard.

``python tests/benchmarks/families_table.py [--library timm] [--json FILE]`` makes the image classifiers below with
random weights, small where they can be, guards them with a purifier that dims images, and prints a Markdown table. A
library that is not installed is skipped. The columns:

- forward: what the guard returns has the type, the entries and the values of what the classifier returns for the
  purified images.
- flag, abstain: of three images, the bright one is rejected; the other answers stay.
- export: ``torch.export`` with a free batch size agrees with the guard for another batch.
- compile: ``torch.compile(fullgraph=True)``, with the backend ``eager``, agrees with the guard.

``no`` is followed by the error; ``not alone`` is a classifier that fails without a guard too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from markdown_table import markdown_table
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import purifier
from purifier.foreign_code import Attempt
from scoring_purifiers import Bright, BrightConfig, calibrated

COLUMNS = ("library", "family", "forward", "flag", "abstain", "export", "compile")
TORCHVISION = {
    **dict.fromkeys(("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5"), 64),
    **dict.fromkeys(("mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"), 64),
    "inception_v3": 96,
    "vgg11": 64,
    "maxvit_t": 224,
    "swin_t": 64,
    "vit_b_32": 64,
}
"""Name -> side of its images."""
TIMM = {
    **dict.fromkeys(("resnet10t", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "ghostnet_050"), 64),
    **dict.fromkeys(("regnetx_002", "edgenext_xx_small", "mobilevit_xxs", "fastvit_t8", "repvgg_a0"), 64),
    **dict.fromkeys(
        ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s32_224", "xcit_nano_12_p16_224"), 64
    ),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = {"depths": [1, 1, 1, 1], "num_channels": 3}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "ViT": {**SMALL, "image_size": 64, "patch_size": 16},
    "DeiT": {**SMALL, "image_size": 64, "patch_size": 16},
    "BEiT": {**SMALL, "image_size": 64, "patch_size": 16},
    "Dinov2": {**SMALL, "image_size": 64, "patch_size": 16},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "ConvNext": {"hidden_sizes": [8, 8, 8, 8], **STAGES},
    "ConvNextV2": {"hidden_sizes": [8, 8, 8, 8], **STAGES},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "groups_width": 8},
    "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.35},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
    "SegFormer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
}
"""Name of the family -> the options of its config."""
CLASSES = 5


@dataclass(frozen=True)
class Family:
    library: str
    name: str
    make: Callable[[], nn.Module]
    side: int = 64


def families() -> Iterator[Family]:
    if installed("torchvision"):
        models = importlib.import_module("torchvision.models")
        for name, side in TORCHVISION.items():
            more = {"image_size": side} if name.startswith("vit") else {}
            more |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            yield Family("torchvision", name, partial(models.get_model, name, num_classes=CLASSES, **more), side)
    if installed("timm"):
        timm = importlib.import_module("timm")
        for name, side in TIMM.items():
            more = {"img_size": side} if name.startswith(("vit", "deit", "mixer", "xcit")) else {}
            yield Family("timm", name, partial(timm.create_model, name, num_classes=CLASSES, **more), side)
    if installed("transformers"):
        transformers = importlib.import_module("transformers")
        for name, options in HUGGING_FACE.items():
            yield Family("transformers", name, partial(hugging_face, transformers, name, options))


def installed(library: str) -> bool:
    try:
        importlib.import_module(library)
    except ImportError:
        print(f"{library} is not installed; its families are left out", file=sys.stderr)
        return False
    return True


def hugging_face(transformers: Any, name: str, options: dict[str, Any]) -> nn.Module:
    name = {"BEiT": "Beit", "SegFormer": "Segformer"}.get(name, name)
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
    made: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
    return made


def row(family: Family) -> dict[str, str]:
    torch.manual_seed(0)
    model = family.make().eval()
    noise = torch.rand(3, 3, family.side, family.side)
    images = noise * torch.tensor([0.3, 0.9, 0.6]).view(3, 1, 1, 1) + torch.tensor([0, 0.1, 0]).view(3, 1, 1, 1)

    def guard(on_reject: Any = "ignore") -> purifier.GuardedModule:
        bright = calibrated(Bright(BrightConfig((3, family.side, family.side))))
        return purifier.guard(model, bright, on_reject=on_reject)

    with torch.no_grad():
        expected = model(0.6 * images)

    def forward() -> None:
        with torch.no_grad():
            same(guard()(images), expected)

    def flag() -> None:
        with torch.no_grad():
            output, rejected = guard("flag")(images)
        same(output, expected)
        assert rejected.tolist() == [False, True, False]

    def abstain() -> None:
        guarded = guard("abstain")
        with torch.no_grad():
            output = guarded(images)
        found, wanted = (guarded.output.find(one) for one in (output, expected))
        assert type(output) is type(expected)
        assert found.isnan().all(1).tolist() == [False, True, False]
        torch.testing.assert_close(found[::2], wanted[::2])

    cells = {
        "forward": cell(forward),
        "flag": cell(flag),
        "abstain": cell(abstain),
        "export": cell(partial(exported, guard(), images), partial(exported, model, images)),
        "compile": cell(partial(compiled, guard(), images), partial(compiled, model, images)),
    }
    return {"library": family.library, "family": family.name, **cells}


def exported(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes).module()
        same(program(images), model(images))


def compiled(model: nn.Module, images: Tensor) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        same(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def same(found: Any, expected: Any) -> None:
    (leaves, shape), (others, wanted) = tree_flatten(found), tree_flatten(expected)
    assert type(found) is type(expected) and shape == wanted
    torch.testing.assert_close(leaves, others, rtol=1e-4, atol=1e-4)


def cell(check: Callable[[], None], alone: Callable[[], None] | None = None) -> str:
    """``yes``, or ``no`` with the error, or ``not alone`` if ``alone`` fails too."""
    with Attempt() as attempt:
        check()
    if attempt.error is None:
        return "yes"
    if alone is not None:
        with Attempt() as other:
            alone()
        if other.error is not None:
            return "not alone"
    return f"no: {type(attempt.error).__name__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("torchvision", "timm", "transformers"), help="only this one")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, as those in results/measured")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")  # of the libraries
    rows = []
    for family in families():
        if given.library in (None, family.library):
            rows.append(row(family))
            print(*rows[-1].values(), file=sys.stderr, flush=True)
    print(markdown_table(COLUMNS, [[one[name] for name in COLUMNS] for one in rows]))
    if given.json is not None:
        libraries = ["torch", *dict.fromkeys(one["library"] for one in rows)]
        source = {
            "command": [f"python tests/benchmarks/families_table.py --library {name}" for name in libraries[1:]],
            "date": date.today().isoformat(),
            "versions": ", ".join(f"{name} {version(name)}" for name in libraries),
        }
        text = json.dumps({"source": source, "tables": {"table": rows}}, indent=1)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
