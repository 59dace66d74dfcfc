"""What users hand over as data: tensors, arrays, torch data sets and loaders; every form gives the same images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset
from torchvision import datasets, transforms

from purifier.data.given import read_data
from purifier.data.loading import load_data
from purifier.errors import ConfigError, DataError

COUNT = 7
PIXELS, LABELS = load_data(f"demo:{COUNT}").batch(range(COUNT))
BYTES = (PIXELS * 255).round().to(torch.uint8)


class Items(Dataset):
    """A data set of given items."""

    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image[0].numpy()) for image in BYTES]


def to_batch(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([one["x"] for one in items]),
        "labels": torch.stack([one["y"] for one in items]),
    }


FORMS = {
    "tensors": lambda: (PIXELS, LABELS),
    "a list of arrays": lambda: [PIXELS.numpy(), LABELS.numpy()],
    "bytes, channels last": lambda: (BYTES.permute(0, 2, 3, 1), LABELS),
    "bytes without channels": lambda: (BYTES[:, 0].numpy(), LABELS.numpy()),
    "a gradient": lambda: (PIXELS.clone().requires_grad_(), LABELS),
    "a tensor data set": lambda: TensorDataset(PIXELS, LABELS),
    "PIL images": lambda: Items(list(zip(pictures(), LABELS.tolist(), strict=True))),
    "mappings": lambda: Items([{"image": a, "label": b} for a, b in zip(pictures(), LABELS.tolist(), strict=True)]),
    "arrays of height and width": lambda: Items(list(zip(BYTES[:, 0].numpy(), LABELS.numpy(), strict=True))),
    "a loader": lambda: DataLoader(TensorDataset(PIXELS, LABELS), batch_size=3),
    "a loader that shuffles": lambda: DataLoader(TensorDataset(PIXELS, LABELS), batch_size=2, shuffle=True),
    "a loader that drops": lambda: DataLoader(TensorDataset(PIXELS, LABELS), batch_size=4, drop_last=True),
    "a loader of a collator": lambda: DataLoader(
        Items([{"x": a, "y": b} for a, b in zip(PIXELS, LABELS, strict=True)]), batch_size=3, collate_fn=to_batch
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str) -> None:
    data = read_data(FORMS[form]())
    assert (len(data), data.shape, data.labelled) == (COUNT, (1, 28, 28), True)
    pixels, labels = data.batch([6, 0, 3])
    assert torch.equal(labels, LABELS[[6, 0, 3]])
    assert pixels.dtype == torch.float32 and not pixels.requires_grad
    torch.testing.assert_close(pixels, PIXELS[[6, 0, 3]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", [PIXELS, BYTES.numpy(), TensorDataset(PIXELS), Items(list(BYTES)), Items(pictures())])
def test_images_alone_have_no_labels(given: object) -> None:
    data = read_data(given)
    assert (len(data), data.labelled) == (COUNT, False)
    torch.testing.assert_close(data.batch([2])[0], PIXELS[[2]], rtol=0, atol=1e-6)


def test_specs_and_image_data_are_taken_as_they_are() -> None:
    data = load_data("demo:3")
    assert read_data(data) is data
    assert read_data("demo:3").name == "demo:3"


def test_torchvisions_folder_and_its_transform(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("ant/1.png", "bee/1.png", "bee/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    steps = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16), transforms.ToTensor()])
    theirs = read_data(datasets.ImageFolder(str(tmp_path), steps))
    ours = load_data(f"folder:{tmp_path}", preprocessing=steps)
    assert (theirs.classes, theirs.labels.tolist()) == (("ant", "bee"), [0, 1, 1]) == (ours.classes, [*ours.labels])
    assert torch.equal(theirs.batch(range(3))[0], ours.batch(range(3))[0])


def test_a_sampler_that_picks_a_part_is_followed() -> None:
    data = TensorDataset(PIXELS, LABELS)
    assert len(read_data(DataLoader(data, sampler=SubsetRandomSampler([5, 1, 3])))) == 3
    part = read_data(DataLoader(data, batch_sampler=[[4, 2], [0]]))
    assert torch.equal(part.labels, LABELS[[0, 2, 4]])


def test_images_of_a_data_set_are_read_when_they_are_needed() -> None:
    class Counting(Items):
        asked = 0

        def __getitem__(self, index: int) -> object:
            Counting.asked += 1
            return super().__getitem__(index)

    data = read_data(Counting(list(zip(BYTES, LABELS, strict=True))))
    before = Counting.asked
    data.batch([1, 2])
    assert Counting.asked == before + 2


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        yield from PIXELS


class Random(Items):
    calls = itertools.count()

    def __getitem__(self, index: int) -> object:
        return PIXELS[next(self.calls) % COUNT], 0


class Failing(Items):
    def __getitem__(self, index: int) -> object:
        if index == 4:
            raise OSError("disk on fire")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (5, ConfigError, "data: expected a DATA spec, ImageData, .* or a DataLoader, got int"),
        (None, ConfigError, "got NoneType"),
        ({"a": 1}, ConfigError, "got dict"),
        (Path("photos"), ConfigError, "got PosixPath; write 'folder:photos'"),
        ((PIXELS,), ConfigError, "got a tuple of Tensor"),
        ((PIXELS, "b"), ConfigError, "got a tuple of Tensor, str"),
        ([], ConfigError, "got a list of nothing"),
        (Stream(), ConfigError, "IterableDataset cannot be read twice"),
        (DataLoader(Stream()), ConfigError, "IterableDataset cannot be read twice"),
        ((PIXELS, LABELS[:3]), DataError, "a label for each of 7 images, got 3"),
        ((PIXELS, PIXELS), DataError, r"expected labels \(N,\) of integers, got float32"),
        ((PIXELS * 4 - 2, LABELS), DataError, "expected float images in .0, 1., .* undo any normalisation"),
        (TensorDataset(PIXELS * 4 - 2, LABELS), DataError, "TensorDataset, image 0: expected float images in .0, 1."),
        (Items([]), DataError, "got an empty data set"),
        (Items(["a"]), DataError, "Items fails to give image 0 .*expected an image"),
        (Items([(PIXELS[0], 0), (PIXELS[1][:, :9], 0)]), DataError, r"got \(1, 9, 28\) .* as image 1; resize"),
        (Items([(PIXELS[0], 0), (PIXELS[1], "cat")]), DataError, "a whole number as the label of image 1, got 'cat'"),
        (Items([(PIXELS[0], 0), PIXELS[1]]), DataError, "a whole number as the label of image 1, got None"),
        (Items([(PIXELS[0], 0.5)]), DataError, "a whole number as the label of image 0, got 0.5"),
        (Failing([*PIXELS]), DataError, r"Failing fails to give image 4 .*disk on fire"),
        (Random([*PIXELS]), DataError, "image 0 is another one each time it is read; leave random transforms out"),
    ],
)
def test_what_is_no_data_is_an_error(given: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_data(given)
