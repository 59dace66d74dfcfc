"""Pictures: which images are read, and what the file shows of them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import purifier
from purifier.attacking.specs import read_attack
from purifier.attacking.threat import Threat
from purifier.data.loading import load_data
from purifier.errors import AuditError, ConfigError, DataError, PixelError, PluginError, SpecError
from purifier.guards.guard import guard
from purifier.guards.module import GuardedModule
from purifier.pictures import (
    MOST,
    RIGHT,
    WRONG,
    Cell,
    Purification,
    difference,
    draw,
    draw_purifications,
    purify_images,
    read_images,
    stages,
    write_strip,
)
from purifier.rejection.calibration import calibrate

RED, GREEN, BLUE = torch.eye(3)[:, :, None, None].expand(3, 3, 6, 6)


@dataclass(frozen=True)
class DarkenConfig:
    by: float = 0.03


class Darken(purifier.Purifier):
    """Takes a little off each pixel; its score is the image's mean."""

    Config = DarkenConfig
    gradient: ClassVar[str] = "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels - self.config.by).clamp(0, 1)

    def score(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).mean(1)


class Broken(Darken):
    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.config.by < 0:
            raise RuntimeError("out of luck")
        return pixels[..., :-1]


def save(path: Path, pixels: Tensor) -> str:
    """An image file of pixels (C, H, W)."""
    image = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2)
    Image.fromarray(image.contiguous().numpy()).save(path)
    return str(path)


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(2).sum())


def drawn_in(picture: np.ndarray, colour: str) -> bool:
    """Whether anything but the edges of letters has a colour such as ``#d55e00``."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((abs(picture - wanted) <= 24).all(2).any())


def test_files_and_data_may_be_mixed(tmp_path: Path) -> None:
    boot, _ = load_data("demo:1").batch([0])
    file = save(tmp_path / "boot.png", boot[0])
    found = read_images([file, "demo:2-4", file], shape=(1, 28, 28))
    assert [name for name, _ in found] == ["boot.png", "demo:2-4[0]", "demo:2-4[1]", "boot.png"]
    expected, _ = load_data("demo").batch([0, 2, 3, 0])
    torch.testing.assert_close(torch.stack([image for _, image in found]), expected)


def test_files_take_the_purifiers_channels_or_keep_their_own(tmp_path: Path) -> None:
    grey, colour = save(tmp_path / "grey.png", torch.full((1, 4, 6), 0.4)), save(tmp_path / "red.png", RED[:, :4])
    ((_, as_colour),) = read_images([grey], shape=(3, 4, 6))
    torch.testing.assert_close(as_colour, torch.full((3, 4, 6), 0.4))
    ((_, as_grey),) = read_images([colour], shape=(1, 4, 6))
    torch.testing.assert_close(as_grey, torch.full((1, 4, 6), 76 / 255))  # ITU-R 601: red weighs 0.299
    shapes = [tuple(image.shape) for _, image in read_images([grey, colour])]
    assert shapes == [(1, 4, 6), (3, 4, 6)]


def test_a_folder_is_a_data_spec(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        save(tmp_path / label / "a.png", BLUE)
    spec = f"folder:{tmp_path}"
    found = read_images([spec], shape=(3, 6, 6))
    assert [name for name, _ in found] == [f"{spec}[0]", f"{spec}[1]"]
    torch.testing.assert_close(found[1][1], BLUE)


def test_images_that_cannot_be_shown_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "small.png", torch.zeros(3, 4, 6))
    (tmp_path / "torn.png").write_bytes((tmp_path / "small.png").read_bytes()[:20])
    (tmp_path / "set.npz").write_bytes(b"")
    for sources, shape, error, says in (
        (["small.png"], (1, 28, 28), DataError, r"small\.png: expected images 1x28x28 .*, got 1x4x6; .*give --resize"),
        (["demo:3"], (3, 32, 32), DataError, r"demo:3: expected images 3x32x32 .*, got 1x28x28"),
        (["torn.png"], None, DataError, r"cannot read image torn\.png"),
        (["absent.png"], None, DataError, r"no image file absent\.png; give the path of an existing one"),
        (["x" * 300], None, DataError, "cannot read xxx.*too long"),
        (["set.npz"], None, SpecError, r"write npz:set\.npz"),
        (["vacation"], None, SpecError, "no data set 'vacation'"),
        (["demo"], None, ConfigError, "demo: a picture holds at most 64 images, got 300; give fewer files"),
        (["demo:60", *["small.png"] * 5], None, ConfigError, r"small\.png: .* at most 64 images, got 65"),
    ):
        with pytest.raises(error, match=says):
            read_images(sources, shape=shape)
    assert len(read_images([f"demo:{MOST}"])) == MOST


def test_a_difference_is_signed_enlarged_and_clipped() -> None:
    clean = torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0])
    purified = torch.tensor([0.5, 0.52, 0.47, 1.0, 0.0])
    torch.testing.assert_close(difference(clean, purified), torch.tensor([0.5, 0.7, 0.2, 1.0, 0.0]))


def test_images_of_several_sizes_are_purified_in_their_order() -> None:
    images = [(str(n), torch.full((c, n, 5), n / 10)) for n, c in ((4, 1), (4, 1), (6, 3), (4, 1))]
    found = purify_images(Darken(DarkenConfig()), images)
    assert [one.name for one in found] == ["4", "4", "6", "4"]
    assert [one.rejected for one in found] == [None] * 4
    for one, (_, clean) in zip(found, images, strict=True):
        torch.testing.assert_close(one.clean, clean)
        torch.testing.assert_close(one.purified, clean - 0.03)
        assert one.score == pytest.approx(float(clean.mean()))


def test_a_calibrated_purifier_rejects_what_scores_above_its_threshold() -> None:
    darken = Darken(DarkenConfig())
    calibrate(darken, "demo", fpr=0.1)
    clean = load_data("demo").batch(range(40))[0]
    images = [("white", torch.ones(1, 28, 28)), *((str(n), image) for n, image in enumerate(clean))]
    found = purify_images(darken, images)
    threshold = darken.provenance["calibration"]["threshold"]
    assert [one.rejected for one in found] == [one.score > threshold for one in found]
    assert found[0].rejected and not all(one.rejected for one in found)


def test_a_purifier_that_fails_is_named() -> None:
    images = [("a", torch.zeros(1, 4, 4))]
    with pytest.raises(PluginError, match=r"Broken fails on images \(1, 4, 4\) \(RuntimeError: out of luck, at .*\)"):
        purify_images(Broken(DarkenConfig(by=-1)), images)
    with pytest.raises(PluginError, match=r"Broken must return images \(1, 1, 4, 4\), got \(1, 1, 4, 3\)"):
        purify_images(Broken(DarkenConfig()), images)
    with pytest.raises(PixelError, match=r"a: expected values in \[0, 1\], got \[0, 2\]"):
        purify_images(Darken(DarkenConfig()), [("a", torch.arange(3.0).expand(1, 3, 3))])


def test_the_picture_holds_the_images_in_their_rows_and_columns() -> None:
    rows = {"above": [Cell(RED), Cell(BLUE), Cell(GREEN)], "below": [Cell(BLUE), Cell(BLUE), Cell(BLUE)]}
    folded = opened(draw(rows, columns=2))
    assert folded.shape == pytest.approx((1.4 * 4 * 110, (1.15 * 2 + 1.6) * 110, 3), abs=1)
    size = count(folded, (255, 0, 0))
    assert size > 80 * 80
    assert count(folded, (0, 255, 0)) == pytest.approx(size, rel=0.05)
    assert count(folded, (0, 0, 255)) == pytest.approx(4 * size, rel=0.05)
    red, green = (np.argwhere((folded == colour).all(2)).mean(0) for colour in ((255, 0, 0), (0, 255, 0)))
    # Red is first in the first fold, green first in the second.
    assert red[1] == pytest.approx(green[1], abs=3)
    assert green[0] - red[0] == pytest.approx(folded.shape[0] / 2, rel=0.1)


def test_grey_images_keep_their_tone() -> None:
    picture = opened(draw({"grey": [Cell(torch.full((1, 6, 6), 0.4))]}, columns=1))
    assert count(picture, (102, 102, 102)) > 80 * 80


def test_a_note_makes_the_picture_taller() -> None:
    rows = {"grey": [Cell(torch.zeros(1, 6, 6))]}
    assert opened(draw(rows, columns=1, note=20 * "words ")).shape[0] > opened(draw(rows, columns=1)).shape[0]


@pytest.mark.parametrize("name", ["plain.png", "$x^{.png", "日本語.png", 40 * "long" + ".png"])
def test_any_name_can_be_drawn(name: str) -> None:
    image = torch.full((1, 6, 6), 0.2)
    assert count(opened(draw_purifications([Purification(name, image, image, 1.0, None)])), (51, 51, 51)) > 2 * 80 * 80


def test_only_rejected_images_have_an_orange_score() -> None:
    image = torch.full((1, 6, 6), 0.2)
    pictures = [
        opened(draw_purifications([Purification("a", image, image, 1.0, rejected)])) for rejected in (None, False, True)
    ]
    assert [drawn_in(picture, WRONG[1]) for picture in pictures] == [False, False, True]


def test_a_purification_is_drawn_clean_purified_and_different() -> None:
    one = Purification("a", torch.full((3, 6, 6), 0.2), torch.full((3, 6, 6), 0.22), 1.0, None)
    picture = opened(draw_purifications([one]))
    heights = []
    for tone in (51, 56, 178):  # 0.2, 0.22, and 0.5 + 10 * 0.02
        where = np.argwhere((abs(picture - tone) <= 1).all(2) & (picture.std(2) == 0))
        assert len(where) > 80 * 80, tone
        heights.append(where.mean(0)[0])
    assert heights == sorted(heights)


def test_a_strip_of_no_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=re.escape("no image to show: expected at least one")):
        write_strip(tmp_path / "x.png", {}, torch.zeros(0, dtype=torch.int64), ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "colours"), [((0, 1), (True, False)), ((0, 7), (True, True)), ((1, 7), (False, True))]
)
def test_right_and_wrong_answers_have_different_colours(
    answers: tuple[int, int], colours: tuple[bool, bool], tmp_path: Path
) -> None:
    images = torch.full((2, 1, 6, 6), 0.2)
    rows = {"clean": (images, torch.tensor(answers))}
    picture = opened(write_strip(tmp_path / "x.png", rows, torch.tensor([0, 1]), ("a", "b")).read_bytes())
    assert (drawn_in(picture, RIGHT[1]), drawn_in(picture, WRONG[1])) == colours


def test_the_stages_show_the_undefended_classifier_fooled_and_the_guard_not() -> None:
    guarded = guard("demo", "demo")
    assert isinstance(guarded, GuardedModule)
    pixels, labels = load_data("demo:6").batch(range(6))
    found = stages(guarded, pixels, labels, read_attack("pgd:steps=10").attack, Threat("linf", 0.1))
    right = {row: int((answers == labels).sum()) for row, (_, answers) in found.items()}
    assert right["undefended, clean"] == 6 and right["undefended, adversarial"] == 0
    assert right["purified, clean"] >= 5 and right["purified, adversarial"] >= 4
    torch.testing.assert_close(found["undefended, clean"][0], pixels)
    for row in ("undefended, adversarial", "adversarial"):
        assert 0 < (found[row][0] - pixels).abs().max() <= 0.1 + 1e-6
    expected = guarded(found["adversarial"][0]).argmax(1)
    assert torch.equal(found["purified, adversarial"][1], expected)
