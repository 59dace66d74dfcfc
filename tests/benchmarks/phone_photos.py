"""A folder of photos as phones write them: trained on and audited on the command line, with seconds and peak memory.

``python tests/benchmarks/phone_photos.py [--count 1000] [--side 64] [--epochs 2] [--images 100]`` makes the photos in a
temporary folder: 640x480 to 4032x3024, JPEG of quality 85 in all eight EXIF orientations, some PNG with alpha, some of
16-bit grey, broken ones, and files that are no images. A small classifier of random weights judges them; the audit is
of agreement with it. It prints the tables of ``results/measured/phone-photos.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image

SIZES = ((640, 480), (1280, 960), (1600, 1200), (2048, 1536), (4032, 3024))
CLASSIFIER = """
import torch


def classifier():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 16, 5, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10)
    model = torch.nn.Sequential(*layers)
    model(torch.zeros(1, 3, {side}, {side}))
    return model.eval()
"""
PROGRAM = "import sys; from purifier.cli import main; sys.argv[0] = 'purifier'; main()"
LOAD = """
import sys, time
from purifier import load_data
began = time.perf_counter()
data = load_data(f"folder:{{sys.argv[1]}}", resize={side}, crop={side}, skip_bad=True)
loaded = time.perf_counter()
for start in range(0, len(data), 100):
    data.batch(range(start, min(start + 100, len(data))))
print(len(data), len(data.skipped), loaded - began, time.perf_counter() - loaded)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="photos, without the files that are no images")
    parser.add_argument("--side", type=int, default=64, help="size of the images that the classifier takes")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=100, help="audited images")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = make_photos(folder / "photos", given.count)
        stages = run_stages(folder, given.side, given.epochs, given.images)
    tables = {"photos": [{"kind": kind, "files": count} for kind, count in kinds.items()], "stages": stages}
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}"
    print(json.dumps({"versions": versions, "cores": os.cpu_count(), "tables": tables}, indent=1))


def make_photos(folder: Path, count: int) -> dict[str, int]:
    """``count`` photos in two albums, and files that are no images; how many of each kind."""
    rng = np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    for place in range(count):
        path = folder / ("holiday", "home")[place % 2] / f"IMG_{place:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds[_write_photo(path, place, rng)] += 1
    for path in (folder / "home" / "Thumbs.db", folder / "home" / "._x.jpg"):
        path.write_bytes(b"no image")
        kinds["`Thumbs.db`, `._x.jpg`"] += 1
    return dict(kinds)


def _write_photo(path: Path, place: int, rng: np.random.Generator) -> str:
    """Write a photo, and name its kind."""
    size = SIZES[place // 2 % len(SIZES)]
    image = _scene(size, rng)
    if place % 50 == 10:
        image.putalpha(Image.linear_gradient("L").resize(size))
        image.resize((640, 480)).save(path.with_suffix(".png"))
        return "PNG with alpha"
    if place % 50 == 20:
        grey = np.asarray(image.convert("L").resize((640, 480)), dtype=np.uint16) * 257
        Image.fromarray(grey).save(path.with_suffix(".png"))
        return "PNG of 16-bit grey"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1 + place % 8
    image.save(path, exif=exif, quality=85)
    if place % 100 == 30:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return "JPEG cut off in the middle"
    if place % 100 == 80:
        path.write_bytes(b"")
        return "JPEG of 0 bytes"
    return f"JPEG {size[0]}x{size[1]}, EXIF orientations 1 to 8"


def _scene(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Smooth colours with edges and the noise of a sensor."""
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    for _ in range(5):
        left, top = (int(rng.integers(0, side)) for side in size)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        image.paste(colour, (left, top, left + size[0] // 6, top + size[1] // 6))
    noise = Image.effect_noise((512, 512), 12)
    tiled = Image.new("L", size)
    for left in range(0, size[0], 512):
        for top in range(0, size[1], 512):
            tiled.paste(noise, (left, top))
    return Image.blend(image, tiled.convert("RGB"), 0.1)


def run_stages(folder: Path, side: int, epochs: int, images: int) -> list[dict[str, object]]:
    """Load, train, calibrate and audit, each in a process of its own: seconds, images per second, peak memory."""
    (folder / "phone_classifier.py").write_text(CLASSIFIER.format(side=side))
    spec, size = f"folder:{folder / 'photos'}", ("--resize", str(side), "--crop", str(side), "--skip-bad")
    checkpoint, model = str(folder / "photos.safetensors"), "phone_classifier:classifier"
    load = ("-c", LOAD.format(side=side), str(folder / "photos"))
    purifier = ("-c", PROGRAM)
    vae = ("--set", f"image_shape=3x{side}x{side}", "--set", "channels=8", "--set", "latent=8", "--set", "spatial=true")
    sized = ("--data", spec, *size)
    trained = ("train", "vae", *sized, *vae, "--epochs", str(epochs), "--out", checkpoint)
    attacked = ("--data", f"{spec}:{images}", *size, "--no-labels", "--eps", "8/255", "--attack", "pgd:steps=10")
    audited = ("audit", "--classifier", model, "--purifier", checkpoint, *attacked, "--out", str(folder / "audited"))
    code, printed, seconds, peak = timed(load, folder)
    assert code == 0, printed
    count, skipped, first, again = (float(value) for value in printed.split())
    rows = [
        _row(f"load: check and decode all ({count:.0f} images, {skipped:.0f} broken)", count + skipped, first, peak),
        _row("read all again", count, again, peak),
    ]
    for title, arguments, total in (
        (f"`purifier train vae`, recipe `elbo`, {epochs} epochs", trained, count * epochs),
        ("`purifier calibrate`", ("calibrate", checkpoint, *sized), count),
        (f"`purifier audit --no-labels` of {images} images, PGD with 10 steps", audited, images),
    ):
        code, printed, seconds, peak = timed((*purifier, *arguments), folder)
        assert code in (0, 3), printed  # 3: a flag was raised
        rows.append(_row(title, total, seconds, peak))
        print(printed, file=sys.stderr)
    return rows


def _row(stage: str, images: float, seconds: float, megabytes: float) -> dict[str, object]:
    speed = round(images / seconds, 1 if seconds > images / 10 else None)
    return {"stage": stage, "seconds": round(seconds, 1), "images/s": speed, "peak MB": round(megabytes)}


def timed(arguments: Sequence[str], folder: Path) -> tuple[int, str, float, float]:
    """Exit code, what was printed, seconds and peak megabytes of a Python process."""
    began = time.perf_counter()
    with (folder / "printed").open("w+") as printed:
        streams = [(os.POSIX_SPAWN_DUP2, printed.fileno(), one) for one in (1, 2)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
        process = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment, file_actions=streams)
        _, status, used = os.wait4(process, 0)
        seconds = time.perf_counter() - began
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read(), seconds, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
