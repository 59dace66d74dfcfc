"""An ONNX classifier computed by torch, for its gradients, once it has been compared with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..data.pixels import Preprocessing
from ..errors import ClassifierError, ConfigError
from ..onnx.feeding import Feed
from .graph.module import GraphModule

DIFFERENCE, ROUGH_DIFFERENCE = 1e-3, 0.05
"""The largest difference of the answers from ONNX Runtime's, as a share of their range; the second where it rounds."""
ERROR, ROUGH_ERROR = 0.05, 0.25
"""The largest relative error of the rise that the gradient predicts along a path."""
HALF_PATHS, ROUGH_HALF_PATHS = (0.3,), (0.3, 1.5, 6.0)
"""L2 lengths of half the path in pixel units, to be tried in turn; the second where it rounds.

Steps of rounding show on a short path, and on a long one the answers turn too often for a few gradients to follow.
"""
FEWEST_PARTS, FEW_PARTS, PARTS = 2, 4, 12
"""The parts of the path: all where few leave more than half of the largest error."""
SETTLED = 0.25
"""The largest change of the predicted rise, with more parts, with which it says something where the model rounds."""
MEASURABLE, ROUGH_MEASURABLE = 1e-3, 0.1
"""The smallest rise along the path, as a share of the answers' range, that shows well enough beside rounding."""
MARGIN = 0.3
"""How far images stay from black and white, so that paths stay in [0, 1]."""
SMOOTHING, SMOOTHED = 0.05, 8
"""Standard deviation of the noise on images whose gradients are averaged where a single one says little; how many."""
COUNT, SIDE = 2, 224
"""Images that are compared, and the sides of those whose size is free."""


class Source:
    """A model that is taken at most once; copies of whoever holds it share it.

    Conversions of the holder, to another device or precision, are kept for what is made of the model.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model: ModelProto | None = model
        self._conversions: list[Callable[[Tensor], Tensor]] = []

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Note a conversion, unless the model is taken: what is made of it is then converted itself."""
        if self._model is not None:
            self._conversions.append(fn)

    def converted(self, made: WhiteBox) -> WhiteBox:
        """What is made of the model, after all conversions so far."""
        for fn in self._conversions:
            made._apply(fn)  # type: ignore[no-untyped-call]  # torch's
        return made

    def taken(self) -> ModelProto | None:
        """The model at the first call, then None."""
        model, self._model = self._model, None
        return model

    def __deepcopy__(self, memo: object) -> Source:
        copied = Source.__new__(Source)
        copied._model, copied._conversions = self._model, list(self._conversions)
        return copied


class Shared:
    """An ONNX Runtime session, which keeps nothing of what it is asked, so that copies of whoever holds it share it."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def __deepcopy__(self, memo: object) -> Shared:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ConfigError(
            "an ONNX classifier that is being audited or trained against cannot be pickled; give other processes its "
            "file, or a session made by purifier.guard"
        )


def example_pixels(shape: tuple[int | None, ...], preprocessing: Preprocessing) -> Tensor:
    """Random pixels (2, C, H, W), smooth but for some noise, for an image input of this shape."""
    sizes = [shape[place] for place in ((0, 3, 1, 2) if preprocessing.layout == "NHWC" else (0, 1, 2, 3))]
    channels = sizes[1] or len(preprocessing.mean) or len(preprocessing.std) or 3
    height, width = (size or SIDE for size in sizes[2:])
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand((COUNT, channels, 7, 7), generator=generator)
    smooth = nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")
    pixels = 0.7 * smooth + 0.3 * torch.rand((COUNT, channels, height, width), generator=generator)
    return MARGIN + (1 - 2 * MARGIN) * pixels


class WhiteBox(nn.Module):
    """The answer of an ONNX model to pixels, by torch.

    Parameters
    ----------
    model
        The model, with all its weights.
    answer
        The name of the output that is its answer.
    image
        The name of the input that takes the images.
    preprocessing
        How it wants them.
    feed
        Values for its other inputs.
    fixed_batch
        The number of images that it takes, if that is fixed.
    file
        How errors call the model.

    Raises
    ------
    ClassifierError
        The graph has an operator without support.
    """

    def __init__(
        self,
        model: ModelProto,
        answer: str,
        image: str,
        preprocessing: Preprocessing,
        feed: Feed,
        fixed_batch: int | None,
        file: str,
    ) -> None:
        super().__init__()
        self.graph = GraphModule(model, [answer], file)
        self.answer, self.image, self.feed, self.fixed_batch = answer, image, feed, fixed_batch
        # A uint8 image is rounded by the graph module, with a straight-through gradient.
        self.preprocessing = (
            dataclasses.replace(preprocessing, dtype="float32") if preprocessing.dtype == "uint8" else preprocessing
        )

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The operators whose gradient is straight-through."""
        return self.graph.straight_through

    def forward(self, pixels: Tensor) -> Tensor:
        dtype = torch.float64 if pixels.dtype == torch.float64 else None
        images = self.preprocessing.to_classifier(pixels, dtype)
        if self.fixed_batch is None:
            return self._answer(images)
        return torch.cat([self._padded(part, self.fixed_batch) for part in torch.split(images, self.fixed_batch)])

    def _padded(self, images: Tensor, size: int) -> Tensor:
        missing = size - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        return self._answer(filled)[: len(images)]

    def _answer(self, images: Tensor) -> Tensor:
        others = {name: torch.as_tensor(value).to(images.device) for name, value in self.feed.of(len(images)).items()}
        wanted = {name: value for name, value in others.items() if name in self.graph.input_names}
        found: Mapping[str, Any] = self.graph(**{self.image: images, **wanted})
        answer: Tensor = found[self.answer]
        return answer


def compare(white_box: WhiteBox, by_runtime: Callable[[Tensor], Tensor], pixels: Tensor, expected: Tensor) -> None:
    """Compare answers, and the rise along a path in the gradient's direction, with those of ONNX Runtime.

    Where the answers hardly change along the path, the gradient cannot be judged, and passes.

    Parameters
    ----------
    by_runtime
        Pixels -> answers by ONNX Runtime.
    pixels
        A few images, (n, C, H, W), at least ``MARGIN`` from 0 and 1.
    expected
        ``by_runtime(pixels)``.

    Raises
    ------
    ClassifierError
        They differ by more than rounding explains.
    """
    rough = bool(white_box.surrogates) or white_box.preprocessing.dtype == "float16"
    expected = expected.double()
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answers, start = _differentiated(white_box, pixels, upstream)
    single = expected[0].numel() == 1  # of one number per image, two may happen to be almost the same
    spread = float(expected.abs().max() if single else expected.max() - expected.min()) or 1.0
    difference = float((answers - expected).abs().max()) / spread
    if not difference <= (ROUGH_DIFFERENCE if rough else DIFFERENCE):
        raise ClassifierError(
            f"torch's answers differ from ONNX Runtime's by {difference:.2g} of their range, expected at most "
            f"{ROUGH_DIFFERENCE if rough else DIFFERENCE:g}",
            "",
        )
    lengths, limit = (ROUGH_HALF_PATHS, ROUGH_ERROR) if rough else (HALF_PATHS, ERROR)
    least = (ROUGH_MEASURABLE if rough else MEASURABLE) * spread * expected.numel() ** 0.5
    path = partial(_along, white_box, by_runtime, pixels, upstream, start)
    found = None
    for length in lengths:
        said, rise, settled = path(start, length, limit, least)
        if max(abs(said), abs(rise)) > least:
            if _error(said, rise) <= limit and (settled or not rough):
                return
            found = said, rise
    if found is None:
        return
    if rough:  # where the gradient is a narrow peak, it says little about the path; the mean of several does
        generator = torch.Generator().manual_seed(2)
        near = [pixels + SMOOTHING * torch.randn(pixels.shape, generator=generator) for _ in range(SMOOTHED)]
        smooth = torch.stack([_differentiated(white_box, one, upstream)[1] for one in near]).mean(0)
        told, risen, _ = path(smooth, 2 * max(lengths), limit, least / 4)
        if max(abs(told), abs(risen)) > least / 4 and _error(told, risen) <= limit:
            return
    raise ClassifierError(
        f"the gradient predicts a rise of {found[0]:.3g} along a path, and ONNX Runtime's answers rise by "
        f"{found[1]:.3g}",
        "",
    )


def _along(
    white_box: WhiteBox,
    by_runtime: Callable[[Tensor], Tensor],
    pixels: Tensor,
    upstream: Tensor,
    middle: Tensor,
    direction: Tensor,
    length: float,
    limit: float,
    least: float,
) -> tuple[float, float, bool]:
    """How far the weighted answers rise on a path through ``pixels``: by the gradients, and by ONNX Runtime.

    ``middle`` is the gradient at ``pixels``. The third says whether more gradients hardly changed the first.
    """
    ahead = direction / direction.norm().clamp_min(1e-30) * length
    ahead = ahead.clamp(-MARGIN, MARGIN)  # integer images would wrap around outside [0, 1]
    ends = [by_runtime((pixels + sign * ahead).float()).double() for sign in (1, -1)]
    rise, said, settled = float(((ends[0] - ends[1]) * upstream).sum()), 0.0, False
    slopes = {PARTS // 2: float((middle * ahead).sum())}
    for parts in (FEWEST_PARTS, FEW_PARTS, PARTS):
        places = range(0, PARTS + 1, PARTS // parts)
        for place in places:
            if place not in slopes:
                _, gradient = _differentiated(white_box, pixels + (2 * place / PARTS - 1) * ahead, upstream)
                slopes[place] = float((gradient * ahead).sum())
        before, said = said, sum((slopes[one] + slopes[other]) / parts for one, other in itertools.pairwise(places))
        settled = parts != FEWEST_PARTS and _error(before, said) <= SETTLED
        small = max(abs(said), abs(rise)) <= least
        if parts != FEWEST_PARTS and (small or _error(said, rise) <= limit / 2):  # most agree at once
            break
    return said, rise, settled


def _error(said: float, rise: float) -> float:
    return abs(rise - said) / max(abs(said), abs(rise), 1e-30)


def _differentiated(white_box: WhiteBox, pixels: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """The answers to pixels (n, C, H, W), and the gradient of their sum weighted by ``upstream``, both float64."""
    with torch.enable_grad():  # whoever asks first may want no gradients
        leaf = pixels.detach().float().requires_grad_()
        answers = white_box(leaf).double()
        if not answers.requires_grad:
            raise ClassifierError("no gradient reaches the images", "")
        (gradient,) = torch.autograd.grad((answers * upstream).sum(), leaf)
    return answers.detach(), gradient.double()
