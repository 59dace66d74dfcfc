"""Pictures of a few images through attack and purifier: one row for each stage, one column for each image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .answering import answer, purify
from .atomic import atomic_write
from .attacking.attack import Attack
from .attacking.target import Target
from .attacking.threat import Threat
from .contracts.purifier import Purifier, Shape, dtype_of, image_shape_of
from .data.files import SUFFIXES, ImageFiles
from .data.framing import read_framing
from .data.loading import load_data
from .data.named import CLASS_NAMES
from .data.pixels import check_pixels, fits
from .errors import AuditError, ConfigError, DataError, PluginError
from .foreign_code import explained
from .guards.module import GuardedModule
from .rejection.calibration import calibration_of, rejected
from .seeding import SampleGenerator, mix_seed
from .vocabulary import Route

COLUMNS, MOST = 8, 64
"""Images side by side, and images in one picture."""
GAIN = 10
"""How much differences are enlarged."""
LETTERS = 18
"""How much of a name fits below an image."""
MODES: Mapping[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}

RIGHT, WRONG = ("✓", "#0072b2"), ("✗", "#d55e00")
"""A mark and a colour: blue and orange, which colour-blind readers can tell from each other (Okabe & Ito 2008)."""

Stage = tuple[Tensor, Tensor]
"""Pixels (N, C, H, W), and the classifier's answer to each, (N,)."""


class Cell(NamedTuple):
    """One image of a picture, (C, H, W) in [0, 1], and what is written below it."""

    image: Tensor
    caption: str = ""
    colour: str = "black"


@dataclass(frozen=True, eq=False)
class Purification:
    """What a purifier makes of one image."""

    name: str
    clean: Tensor
    """(C, H, W) in [0, 1]."""
    purified: Tensor
    """(C, H, W) in [0, 1]."""
    score: float
    rejected: bool | None
    """Whether the score is above the purifier's threshold; None if it is not calibrated."""


@torch.no_grad()
def stages(
    guard: GuardedModule, pixels: Tensor, labels: Tensor, attack: Attack, threat: Threat, *, seed: int = 0
) -> dict[str, Stage]:
    """The answers of classifier and guard to clean and to adversarial images.

    ``undefended, clean`` and ``undefended, adversarial``: the classifier alone, attacked along its own gradient.
    ``purified, clean`` and ``purified, adversarial``: what the purifier makes of the images, attacked along the route
    exact. ``adversarial``: the images of that attack before the purifier.

    Parameters
    ----------
    pixels, labels
        (N, C, H, W) in [0, 1], and the true classes (N,). A random purifier shows its mean.
    """
    classifier = guard.pixel_classifier()

    def attacked(route: Route) -> Tensor:
        streams = [SampleGenerator(mix_seed(seed, kind, route), range(len(pixels))) for kind in ("target", "attack")]
        target = Target(classifier, guard.purifier, route, streams[0])
        return threat.project(attack.perturb(target, pixels, labels, threat, streams[1]).detach(), pixels)

    def undefended(images: Tensor) -> Stage:
        return images, classifier(images).argmax(1)

    def purified(images: Tensor) -> Stage:
        given = answer(guard.purifier, classifier, images)
        return given.purified, given.output.argmax(1)

    exact = attacked("exact")
    return {
        "undefended, clean": undefended(pixels),
        "undefended, adversarial": undefended(attacked("oblivious")),
        "purified, clean": purified(pixels),
        "purified, adversarial": purified(exact),
        "adversarial": undefended(exact),
    }


def write_strip(path: str | Path, rows: Mapping[str, Stage], labels: Tensor, classes: Sequence[str]) -> Path:
    """Write stages as a PNG, one row each; the header names the true classes ``labels`` (N,), a caption the answer."""
    if not len(labels):
        raise AuditError("no image to show: expected at least one")

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    cells = {
        row.replace(", ", ",\n"): [
            _answered(image, name(got), right=got == label)
            for image, got, label in zip(pixels, answers.tolist(), labels.tolist(), strict=True)
        ]
        for row, (pixels, answers) in rows.items()
    }
    header = [f"true class:\n{name(label)}" for label in labels.tolist()]
    note = f"Below each image the classifier's answer: {RIGHT[0]} right, {WRONG[0]} wrong."
    return atomic_write(path, draw(cells, columns=len(labels), header=header, note=note))


def _answered(image: Tensor, name: str, *, right: bool) -> Cell:
    mark, colour = RIGHT if right else WRONG
    return Cell(image, f"{mark} {name}", colour)


def read_images(
    sources: Sequence[str],
    *,
    shape: Shape | None = None,
    root: str | Path | None = None,
    resize: str | None = None,
    crop: str | None = None,
) -> list[tuple[str, Tensor]]:
    """Image files and DATA specs, mixed -> names and pixels (C, H, W), float32 in [0, 1].

    Parameters
    ----------
    sources
        Paths of image files, each named by its file name; and DATA specs, whose images are named ``SPEC[0]``,
        ``SPEC[1]``...
    shape
        (C, H, W) that all must have, None for any size. Files are converted to its channels, grey or colour.
    root, resize, crop
        As for ``load_data``; the sizes are for image files and folders.

    Raises
    ------
    DataError, SpecError
        A source cannot be read, or has images of another shape.
    ConfigError
        They are more images than one picture holds.
    """
    found: list[tuple[str, Tensor]] = []
    for source in sources:
        path = _image_file(source)
        if path is None:
            sizes = (resize, crop) if source.startswith("folder:") else (None, None)
            data = load_data(source, root=root, resize=sizes[0], crop=sizes[1])
            count, images_shape = len(data), data.shape
        else:
            file = ImageFiles([path], MODES.get(shape[0]) if shape else None, read_framing(resize, crop))
            count, *rest = file.shape
            images_shape = (rest[0], rest[1], rest[2])
        if shape is not None and not fits(images_shape, shape):
            raise DataError(
                f"{source}: expected images {_by(shape)} (channels x height x width), which the purifier is made "
                f"for, got {_by(images_shape)}; for files and folders give --resize and --crop",
                source,
            )
        if len(found) + count > MOST:
            raise ConfigError(
                f"{source}: a picture holds at most {MOST} images, got {len(found) + count}; give fewer files, or a "
                "part of the data such as fashion-mnist:test:8"
            )
        if path is None:
            found += [(f"{source}[{index}]", image) for index, image in enumerate(data.batch(range(count))[0])]
        else:
            found.append((path.name, file[torch.tensor([0])][0].float() / 255))
    return found


def _image_file(source: str) -> Path | None:
    """The path of an image file; None for what can only be a DATA spec."""
    path = Path(source)
    if source.partition(":")[0] in (*CLASS_NAMES, "demo", "folder", "npz") or path.suffix == ".npz":
        return None
    try:
        if path.is_file():
            return path
    except OSError as error:  # a folder that may not be searched, a name too long
        raise DataError(
            f"cannot read {path}: {error.strerror or error}; give images that you may read", path
        ) from error
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"no image file {path}; give the path of an existing one, or a DATA spec", path)
    return None


@torch.no_grad()
def purify_images(purifier: Purifier, images: Sequence[tuple[str, Tensor]]) -> list[Purification]:
    """Purify and score named images, (C, H, W) in [0, 1], of any sizes; a random purifier shows its mean.

    Raises
    ------
    PixelError
        An image is not within [0, 1], or not of the purifier's size.
    PluginError
        The purifier fails, or does not give an image and a score for each image.
    """
    calibration, name = calibration_of(purifier), type(purifier).__name__
    found: list[Purification] = []
    for shape, group in groupby(images, key=lambda image: image[1].shape):
        names, tensors = zip(*group, strict=True)
        pixels = torch.stack(tensors)
        check_pixels(pixels, name=names[0], shape=image_shape_of(purifier))
        with explained(f"{name} fails on images {tuple(shape)}", partial(PluginError, name=name)):
            purified, score = purify(purifier, pixels.to(dtype_of(purifier)), scored=True)
        assert score is not None
        if not (purified.isfinite().all() and score.isfinite().all()):
            raise PluginError(f"{name} must return finite images and scores, got NaN or infinity", name)
        over = [None] * len(names) if calibration is None else rejected(score, calibration.threshold).tolist()
        found += map(Purification, names, pixels, purified.float(), score.tolist(), over)
    return found


def draw_purifications(found: Sequence[Purification]) -> bytes:
    """A PNG with each image clean, purified, and the difference; below it the score, orange if it is rejected."""
    rows: dict[str, list[Cell]] = {"clean": [], "purified": [], f"difference\nx{GAIN}": []}
    for one in found:
        name = one.name if len(one.name) <= LETTERS else f"…{one.name[1 - LETTERS :]}"
        score = f"{one.score:.4g}"
        cells = (
            Cell(one.clean, name),
            Cell(one.purified),
            Cell(
                difference(one.clean, one.purified), *((f"{score}\nrejected", WRONG[1]) if one.rejected else (score,))
            ),
        )
        for row, cell in zip(rows.values(), cells, strict=True):
            row.append(cell)
    note = (
        f"difference: 0.5 + {GAIN} (purified - clean), clipped to [0, 1]; grey is no change. Below it the score, "
        "higher is more unusual"
    )
    return draw(rows, columns=min(COLUMNS, len(found)), note=note)


def difference(clean: Tensor, purified: Tensor) -> Tensor:
    """What the purifier changed, enlarged and signed: grey (0.5) is no change, clipped to [0, 1]."""
    return (0.5 + GAIN * (purified - clean)).clamp(0, 1)


def draw(rows: Mapping[str, Sequence[Cell]], *, columns: int, header: Sequence[str] = (), note: str = "") -> bytes:
    """A PNG of named rows of equal length, folded after ``columns`` images.

    ``header`` stands above the columns, ``note`` below all rows.
    """
    from matplotlib.figure import Figure  # a second to import, which no other command should pay

    count = max(map(len, rows.values()))
    folds = range(0, count, columns)
    lines = [(name, row[start : start + columns]) for start in folds for name, row in rows.items()]
    width = 1.15 * columns + 1.6
    note = fill(note, round(15 * width))
    figure = Figure(figsize=(width, 1.4 * len(lines) + 0.15 * len(note.splitlines())), layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for line, (name, cells) in zip(axes, lines, strict=True):
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
        for axis, cell in zip(line, cells, strict=False):
            axis.imshow(cell.image.cpu().permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(cell.caption, fontsize=8, color=cell.colour, parse_math=False)
        for axis in line[len(cells) :]:
            axis.set_visible(False)
    for axis, title in zip(axes[0], header, strict=False):
        axis.set_title(title, fontsize=8, parse_math=False)
    if note:
        figure.supxlabel(note, fontsize=8)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a file name in another script
        figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _by(shape: Shape) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)
