"""Damaged files and options for ``fuzz.py``: what a reader is given, made from a seed, and how it reads it."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_changes import ODD, bytes_changed, json_changed, text_changed
from fuzz_onnx import field_changed, onnx_seeds
from PIL import Image
from safetensors.torch import save as serialize
from torch import nn

import purifier
from purifier import Preprocessing
from purifier.attacking.specs import read_attack
from purifier.attacking.threat import Threat
from purifier.classifiers.loading import load_classifier
from purifier.classifiers.weights import load_weights, read_weights, state_for
from purifier.cli.options import read_preprocessing_option
from purifier.cli.report import report as report_command
from purifier.contracts.checkpoint import write_tensors
from purifier.data.loading import load_data
from purifier.data.preprocessing import read_preprocessing

Read = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Reader:
    """How often it is tried, and one trial: it damages something with the given chance and reads it."""

    count: int
    read: Read


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))


def onnx_bytes(folder: Path, chance: random.Random) -> None:
    _guard_onnx(
        folder, bytes_changed(chance.choice(onnx_seeds()).SerializeToString(), chance, chance.choice((1, 3, 5)))
    )


def onnx_fields(folder: Path, chance: random.Random) -> None:
    model = type(chance.choice(onnx_seeds()))()
    model.CopyFrom(chance.choice(onnx_seeds()))
    for _ in range(chance.choice((1, 1, 2, 4))):
        field_changed(model, chance)
    _guard_onnx(folder, model.SerializeToString())


def _guard_onnx(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    (folder / "weights.bin").write_bytes(bytes(20))
    session = purifier.guard(folder / "model.onnx", "identity", providers=["CPUExecutionProvider"])
    shape = [size or (2 if place == 0 else 8) for place, size in enumerate(session.image.shape)]
    if math.prod(shape) < 1e6 and len(session.get_inputs()) == 1:
        try:
            session.run(None, {session.input: np.zeros(shape, session.image.dtype)})
        except RuntimeError as error:  # the classifier's own graph fails on images, and ONNX Runtime says so
            if "onnxruntime" not in f"{type(error).__module__}":
                raise


def checkpoint(folder: Path, chance: random.Random) -> None:
    made = purifier.load("vae:image_shape=1x8x8,channels=2,depth=1,latent=2")
    path = folder / "purifier.safetensors"
    way = chance.randrange(3)
    if way == 0:
        purifier.save(made, path)
        path.write_bytes(bytes_changed(path.read_bytes(), chance))
    elif way == 1:  # the metadata's facts
        purifier.save(made, path, calibration={"fpr": 0.05, "threshold": 0.5, "data": "demo", "count": 300})
        facts = json.loads(_header(path.read_bytes())["__metadata__"]["purifier"])
        write_tensors(made.state_dict(), path, {"purifier": json_changed(facts, chance)})
    else:  # the header's own: names, types, shapes, offsets
        content = serialize(made.state_dict(), {"purifier": "{}"}) if chance.random() < 0.1 else None
        if content is None:
            purifier.save(made, path)
            content = path.read_bytes()
        header, size = _header(content), int.from_bytes(content[:8], "little")
        text = json.dumps(json_changed(header, chance)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    found = purifier.load(path)
    with torch.no_grad():
        found.purify(torch.zeros(1, 1, 8, 8))


def _header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def npz(folder: Path, chance: random.Random) -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    kinds = (np.uint8, np.float16, np.float64, np.int8, np.complex64, bool, "U3", "M8[s]", object)
    if chance.random() < 0.3:
        images = images.reshape(chance.choice(((4, 64), (4, 1, 8, 8), (256,), (4, 8, 8, 1), (2, 2, 8, 8), (1, 8, 32))))
        images, labels = images.astype(chance.choice(kinds)), labels.astype(chance.choice(kinds))
    stored = io.BytesIO()
    (np.savez if chance.random() < 0.5 else np.savez_compressed)(stored, images=images, labels=labels)
    content = stored.getvalue()
    way = chance.randrange(3)
    if way == 0:
        content = bytes_changed(content, chance)
    elif way == 1:  # inside the archive, whose checksums then fit
        stored = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, bytes_changed(old.read(name), chance))
        content = stored.getvalue()
    (folder / "images.npz").write_bytes(content)
    load_data(f"npz:{folder / 'images.npz'}").batch(range(1))


def idx(folder: Path, chance: random.Random) -> None:
    parts = {"images-idx3": (3, (4, 28, 28)), "labels-idx1": (1, (4,))}
    for name, (dimensions, shape) in parts.items():
        content = bytes((0, 0, 8, dimensions)) + struct.pack(f">{dimensions}I", *shape) + bytes(math.prod(shape))
        changed = bytes_changed(content, chance) if chance.random() < 0.7 else content
        packed = gzip.compress(changed, mtime=0)
        if chance.random() < 0.3:
            packed = bytes_changed(packed, chance)
        if chance.random() < 0.05:
            packed += gzip.compress(bytes(2**26)) * 40  # 2.7 GB from 2.6 MB
        path = folder / f"t10k-{name}-ubyte"
        path.with_suffix(".gz").write_bytes(packed) if chance.random() < 0.7 else path.write_bytes(changed)
    load_data("fashion-mnist", root=folder).batch(range(1))


def pictures(folder: Path, chance: random.Random) -> None:
    modes = ("RGB", "RGBA", "L", "I;16", "P", "CMYK", "1", "LA")
    for label in ("a", "b"):
        (folder / label).mkdir()
        for place in range(2):
            name, kind = chance.choice(((f"{place}.png", "PNG"), (f"{place}.jpg", "JPEG"), (f"{place}.gif", "GIF")))
            mode = chance.choice(modes if kind == "PNG" else ("RGB", "L"))
            mode = "RGB" if mode == "CMYK" else mode
            stored = io.BytesIO()
            Image.new(mode, (9, 8)).save(stored, kind)
            content = stored.getvalue()
            if chance.random() < 0.5:
                content = bytes_changed(content, chance)
            (folder / label / name).write_bytes(content)
    load_data(f"folder:{folder}", skip_bad=chance.random() < 0.5, resize=8, crop=8).batch(range(1))


def reports(folder: Path, chance: random.Random, *, seeds: tuple[Path, ...]) -> None:
    text = chance.choice(seeds).read_text(encoding="utf-8")
    way = chance.randrange(8)
    if way == 0:
        content = bytes_changed(text.encode(), chance)
    elif way == 1:
        content = text.replace('"rows": [', '"rows": [' + "[" * 10**5, 1).encode()
    else:
        content = json.dumps(json_changed(json.loads(text), chance)).encode()
    path = folder / "report.json"
    path.write_bytes(content)
    report_command(path)


def purifier_specs(folder: Path, chance: random.Random) -> None:
    seeds = ("vae:image_shape=1x8x8,channels=2,depth=1,latent=2,spatial=true", "blur:sigma=1.5", "identity", "demo")
    seeds += ("bit-depth:bits=3", "gmvae:image_shape=1x8x8,channels=2,depth=1,latent=2", "latent:base=demo,steps=2")
    purifier.load(text_changed(chance.choice(seeds), chance))


def attack_specs(folder: Path, chance: random.Random) -> None:
    seeds = ("pgd:steps=40,restarts=2,scale=raw", "apgd-ce:steps=5", "fgsm", "square:queries=100", "cw:steps=5")
    seeds += ("foolbox:LinfPGD,steps=40", "deepfool:steps=3,candidates=4", "spsa:samples=8", "ead:minimal=true")
    read_attack(text_changed(chance.choice(seeds), chance))


def data_specs(folder: Path, chance: random.Random) -> None:
    seeds = ("demo:10", "demo:5-10", f"npz:{folder}/a.npz:10", f"folder:{folder}:3-4", "demo")
    load_data(text_changed(chance.choice(seeds), chance), root=folder)


def model_specs(folder: Path, chance: random.Random) -> None:
    seeds = ("demo", "torch.nn:Identity", "file.onnx", "model.pt2", "purifier.assets.classifier:demo_classifier")
    load_classifier(text_changed(chance.choice(seeds), chance))


def preprocessing(folder: Path, chance: random.Random) -> None:
    if chance.random() < 0.5:
        text = "mean=0.5,0.5,0.5,std=0.25,0.25,0.25,scale=255,layout=NHWC,dtype=float16,channels=BGR,resize=8"
        made = read_preprocessing_option(text_changed(text, chance))
    else:
        timm = {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "input_size": [3, 8, 8],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        }
        face = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "resample": 3}
        face |= {"image_std": [0.5] * 3, "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8}}
        own = {"mean": [0.5], "std": [0.5], "scale": 1.0, "layout": "NCHW", "resize": 8, "crop": [8, 8]}
        made = read_preprocessing(json_changed(chance.choice((timm, face, own)), chance))
    channels = max(1, len((made or Preprocessing()).mean))
    (made or Preprocessing()).to_classifier(torch.zeros(1, min(channels, 8), 8, 8))


def numbers(folder: Path, chance: random.Random) -> None:
    way = chance.randrange(4)
    if way == 0:
        Threat(chance.choice(("linf", "l2", "l1", *ODD)), chance.choice((0.1, *ODD)))
    elif way == 1:
        purifier.guard(net().eval(), "identity", **{chance.choice(("abstain", "on_reject", "seed", "input", "output",
            "output_kind", "score", "on_bad_pixels", "preprocessing")): chance.choice(ODD)})  # fmt: skip
    elif way == 2:
        names = ("resize", "crop", "preprocessing", "classes", "max_bytes")
        load_data(chance.choice(("demo:4", f"folder:{folder}")), **{chance.choice(names): chance.choice(ODD)})
    else:
        with purifier.onnx_limits(**{chance.choice(("nodes", "elements", "loop_steps")): chance.choice(ODD)}):
            pass


def state_dicts(folder: Path, chance: random.Random) -> None:
    state: dict[Any, Any] = dict(net().state_dict())
    way = chance.randrange(3)
    if way == 0:
        key = chance.choice(list(state))
        odd = (*ODD, torch.zeros(0), torch.zeros(3, dtype=torch.complex64), torch.zeros(2, 2).to_sparse(), b"x")
        state[chance.choice((key, 3, "module." + key, "new", ("a",)))] = chance.choice(odd)
    found = chance.choice(
        (state, {"state_dict": state}, {"model": state, "epoch": 3}, {"state_dict": chance.choice(ODD)})
    )
    if chance.random() < 0.1:
        found = chance.choice(ODD)
    path = folder / chance.choice(("weights.pt", "weights.pth", "weights.bin", "weights.ckpt"))
    torch.save(found, path, _use_new_zipfile_serialization=chance.random() < 0.6)
    if way == 1:
        path.write_bytes(bytes_changed(path.read_bytes(), chance))
    elif way == 2 and zipfile.is_zipfile(path):
        stored = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(stored, "w") as new:
            for name in old.namelist():
                changed = name.endswith("data.pkl") or chance.random() < 0.1
                new.writestr(name, bytes_changed(old.read(name), chance) if changed else old.read(name))
        path.write_bytes(stored.getvalue())
    module = net()
    load_weights(module, state_for(module, read_weights(path), path), path)


def readers(report_seeds: tuple[Path, ...]) -> dict[str, Reader]:
    return {
        "ONNX files, bytes": Reader(300, onnx_bytes),
        "ONNX files, fields": Reader(500, onnx_fields),
        "checkpoints": Reader(400, checkpoint),
        "npz": Reader(250, npz),
        "idx and gz": Reader(100, idx),
        "folders of images": Reader(150, pictures),
        "reports": Reader(300, lambda folder, chance: reports(folder, chance, seeds=report_seeds)),
        "PURIFIER specs": Reader(200, purifier_specs),
        "ATTACK specs": Reader(150, attack_specs),
        "DATA specs": Reader(100, data_specs),
        "MODEL specs": Reader(100, model_specs),
        "preprocessing": Reader(200, preprocessing),
        "options": Reader(150, numbers),
        "state dicts": Reader(300, state_dicts),
    }
