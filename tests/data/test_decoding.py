"""Image files as cameras and editors write them -> what people see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from purifier.data.decoding import Facts, decode
from purifier.data.framing import Framing
from purifier.errors import DataError

ORIENTATION = 0x0112
UPRIGHT = np.array([[0, 85, 170], [255, 30, 60]], dtype=np.uint8)
"""Two rows of three blocks; each block becomes 16x16 pixels, which JPEG stores exactly enough."""
STORED = {  # EXIF 2.3, tag Orientation: where the 0th row and the 0th column of the stored image are
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


def blocks(values: np.ndarray) -> np.ndarray:
    return np.kron(values, np.ones((16, 16), dtype=np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(blocks(STORED[orientation])).convert("RGB").save(path, exif=exif, quality=100)
    image, facts = decode(path, "RGB")
    assert facts == Facts((48, 32), grey=False)
    found = np.array(image).astype(int)
    assert np.abs(found - blocks(UPRIGHT)[..., None]).max() <= 2


def large_photo(path: Path, size: tuple[int, int], orientation: int) -> Image.Image:
    """A JPEG with smooth and sharp parts and noise, all sides different; as decoded in full, upright."""
    noise = np.random.default_rng(0)
    image = Image.fromarray(noise.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.paste((250, 20, 20), (size[0] // 9, size[1] // 7, size[0] // 3, size[1] // 4))
    values = np.array(image) + noise.normal(0, 5, (size[1], size[0], 1))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, exif=exif, quality=85)
    with Image.open(path) as stored:
        return ImageOps.exif_transpose(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("size", "framing"),
    [
        ((643, 405), Framing(64, (64, 64))),  # at 1/2
        ((1283, 969), Framing(64, (64, 48), "bicubic")),  # at 1/4, sizes that 4 does not divide
        ((907, 1201), Framing((50, 60))),  # at 1/8
    ],
)
def test_shrunk_photos_are_nearly_those_decoded_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, size: tuple[int, int], framing: Framing
) -> None:
    full = large_photo(tmp_path / "photo.jpg", size, orientation)
    asked = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *given: asked.append(draft(*given)) or asked[-1])
    found, facts = decode(tmp_path / "photo.jpg", "RGB", framing)
    assert len(asked) == 1 and facts.size == full.size
    wanted = np.array(framing(full)).astype(int)  # not shrunk
    difference = np.abs(np.array(found).astype(int) - wanted)
    assert found.size == framing.framed(full.size)
    assert difference.mean() < 0.7 and difference.max() <= 20  # levels of 255


@pytest.mark.parametrize(
    "framing", [Framing(), Framing(crop=(64, 64)), Framing(102, (64, 64)), Framing(20, (8, 8), "nearest")]
)
def test_photos_are_decoded_in_full_unless_four_times_as_large(tmp_path: Path, framing: Framing) -> None:
    full = large_photo(tmp_path / "photo.jpg", (643, 405), 6)
    found, _ = decode(tmp_path / "photo.jpg", "RGB", framing)
    assert np.array_equal(np.array(found), np.array(framing(full)))


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # 20% of red over white
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 51), (204, 204, 204)),
    ],
)
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str, colour: object, seen: object) -> None:
    path = tmp_path / "logo.png"
    Image.new(mode, (2, 2), colour).save(path)
    image, facts = decode(path, "RGB")
    assert image.getpixel((0, 0)) == seen
    assert facts.grey == (mode == "LA")


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_palette_colour_is_white(tmp_path: Path, transparency: object) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "icon.png", transparency=transparency)
    found, _ = decode(tmp_path / "icon.png", "RGB")
    assert [found.getpixel((column, 0)) for column in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan.{suffix}"
    values = np.array([[0, 128, 129, 257], [32_768, 40_000, 65_406, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    image, facts = decode(path, "L")
    assert facts == Facts((4, 2), grey=True)
    assert np.array(image).tolist() == np.rint(values / 257).astype(int).tolist()


def test_cmyk_and_black_and_white(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = decode(tmp_path / "print.jpg", "RGB")[0].getpixel((4, 4))
    assert red > 250 and green < 5 and blue < 5
    Image.new("1", (2, 2), 1).save(tmp_path / "fax.png")
    assert decode(tmp_path / "fax.png", "L")[0].getpixel((0, 0)) == 255


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"bad.{kind.split()[0]}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "png text":
        path.write_text("no image")
    elif kind == "png float":
        path = tmp_path / "bad.tif"
        Image.new("F", (2, 2)).save(path)
    else:
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        middle = len(content) // 2
        cut = content[:middle] if kind.endswith("cut") else content[:middle] + bytes(200) + content[middle + 200 :]
        path.write_bytes(b"" if kind.endswith("empty") else cut)
    return path


@pytest.mark.parametrize("kind", ["jpg cut", "png cut", "png zeros", "webp cut", "jpg empty", "png text", "png float"])
def test_damaged_files_are_found_and_named(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path, kind)
    for framing in (Framing(), Framing(8, (8, 8))):
        with pytest.raises(DataError, match=str(path)) as found:
            decode(path, "RGB", framing)
        assert found.value.path == path


def test_an_image_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="exceeds limit"):
        decode(tmp_path / "bomb.png")
