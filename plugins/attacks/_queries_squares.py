"""The two kinds of squares of the Square attack, for ``linf`` and for ``l2``."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from purifier.seeding import SampleGenerator
from purifier.torch_tools.norms import norm_of, scale_like

LOOKAHEAD = 4
"""How many squares to look ahead for one whose outcome is unknown."""
MAX_REMEMBERED = 2**16
"""Failed squares are remembered if there are at most this many different ones; otherwise few would occur twice."""


class Boxes:
    """Squares for ``linf``, with one sign per channel (algorithm 2), on vertical stripes.

    Each pixel is at the top or the bottom of its range, so a square may change nothing at all. Another may have failed
    before at the same position, size and sign: a few pixels changed elsewhere since then rarely make it worth a second
    query. Such squares use up their step without a proposal; failed ones only with ``remember``, for a target whose
    answers do not vary.

    ``clean`` (N, C, H, W) in [0, 1]; ``sizes`` (T,) int64 are the side lengths of the squares.
    """

    def __init__(self, clean: Tensor, eps: float, sizes: Tensor, generator: SampleGenerator, *, remember: bool) -> None:
        count, channels, self._height, self._width = clean.shape
        self._low, self._high = (clean - eps).clamp_min(0), (clean + eps).clamp_max(1)
        stripes = generator.uniform((channels, 1, self._width), clean) < 0.5
        self.here = torch.where(stripes, self._high, self._low)
        self._raised = stripes.to(clean).expand_as(clean).contiguous()
        numbers = generator.uniform((len(sizes), 2 + channels), clean)
        self._sizes = sizes.to(clean.device)
        self._tops = (numbers[..., 0] * (self._height - self._sizes + 1)).int()
        self._lefts = (numbers[..., 1] * (self._width - self._sizes + 1)).int()
        self._up = numbers[..., 2:] < 0.5
        # A failure counts only for squares of the same size.
        fresh = torch.cat([sizes.new_ones(1), (sizes.diff() != 0).long()]) if len(sizes) else sizes
        self._since = (fresh * torch.arange(len(sizes))).cummax(0).values.to(clean.device)
        kinds = self._height * self._width * 2**channels
        self._remember = remember and kinds <= MAX_REMEMBERED
        # Rows of the three tables above, so the tables are not copied whenever an image is done.
        self._row = torch.arange(count, device=clean.device)
        self._step = torch.zeros_like(self._row)
        # The step at which each square last failed; a proposed square counts as failed until it is taken.
        self._failed = torch.full((count, kinds if self._remember else 0), -1, dtype=torch.int32, device=clean.device)
        self._latest = torch.zeros_like(self._row)
        self._bits = 2 ** torch.arange(channels, device=clean.device)

    @staticmethod
    def size(fraction: float, height: int, width: int) -> int:
        """The side length of a square that covers a fraction of the image."""
        return min(max(round(math.sqrt(fraction * height * width)), 1), height, width)

    def propose(self) -> tuple[Tensor, Tensor]:
        ahead = self._step.unsqueeze(1) + torch.arange(LOOKAHEAD, device=self._step.device)
        within = ahead < len(self._sizes)
        ahead = ahead.clamp_max(len(self._sizes) - 1)
        place = self._row.unsqueeze(1), ahead
        top, left, up, size = self._tops[place], self._lefts[place], self._up[place], self._sizes[ahead]
        rows, columns = _inside(top, size, self._height), _inside(left, size, self._width)
        useful = within & self._changes(rows, columns, up, size)
        if self._remember:
            kind = (top * self._width + left).long() * 2 ** up.shape[2] + (up * self._bits).sum(2)
            failed = self._failed.gather(1, kind) >= self._since[ahead]
            useful &= ~failed
        has, first = useful.max(1)
        self._step = self._step + torch.where(has, first + 1, LOOKAHEAD)
        proposing = has.nonzero().squeeze(1)
        chosen = proposing, first[proposing]
        if self._remember:
            self._latest[proposing] = kind[chosen]
            self._failed[proposing, kind[chosen]] = ahead[chosen].int()
        square = rows[chosen].unsqueeze(2) & columns[chosen].unsqueeze(1)
        filled = torch.where(up[chosen][..., None, None], self._high[proposing], self._low[proposing])
        return proposing, torch.where(square.unsqueeze(1), filled, self.here[proposing])

    def take(self, rows: Tensor, proposals: Tensor) -> None:
        self.here[rows] = proposals
        self._raised[rows] = (proposals == self._high[rows]).to(proposals)
        if self._remember:
            # Later squares may overwrite it, and then it may help again.
            self._failed[rows, self._latest[rows]] = -1

    def select(self, keep: Tensor) -> None:
        self.here, self._low, self._high = self.here[keep], self._low[keep], self._high[keep]
        self._raised, self._failed, self._latest = self._raised[keep], self._failed[keep], self._latest[keep]
        self._row, self._step = self._row[keep], self._step[keep]

    def over(self) -> Tensor:
        return self._step >= len(self._sizes)

    def _changes(self, rows: Tensor, columns: Tensor, up: Tensor, size: Tensor) -> Tensor:
        """Which squares would change a pixel, (N, L), from rows (N, L, H), columns (N, L, W) and signs (N, L, C)."""
        strips = rows.to(self._raised).unsqueeze(1) @ self._raised
        raised = (strips * columns.unsqueeze(1)).sum(3).transpose(1, 2)
        return torch.where(up, raised < size.square().unsqueeze(2), raised > 0).any(2)


class Bumps:
    """Squares for ``l2``, with two opposite bumps that take over the budget of a second square (algorithm 3).

    ``clean`` (N, C, H, W) in [0, 1]; ``sizes`` (T,) int64 are the side lengths of the squares.
    """

    def __init__(self, clean: Tensor, eps: float, sizes: Tensor, generator: SampleGenerator) -> None:
        self._clean, self._eps, self._sizes = clean, eps, sizes.tolist()
        _, channels, self._height, self._width = clean.shape
        tile = max(1, min(self._height, self._width) // 5)
        down, across = self._height // tile, self._width // tile
        draws = generator.uniform((down, across, 1 + channels), clean)
        signs = draws[..., 1:].permute(0, 3, 1, 2).sub(0.5).sign()
        bumps = self._oriented(tile, draws[..., 0])
        grid = torch.einsum("ncij,nijrs->ncirjs", signs, bumps).reshape(
            len(clean), channels, down * tile, across * tile
        )
        change = torch.zeros_like(clean)
        up, left = (self._height - down * tile) // 2, (self._width - across * tile) // 2
        change[:, :, up : up + down * tile, left : left + across * tile] = grid
        self.here = self._at_budget(change)
        self._numbers = generator.uniform((len(self._sizes), 5 + channels), clean)
        self._row = torch.arange(len(clean), device=clean.device)
        self._step = 0

    @staticmethod
    def size(fraction: float, height: int, width: int) -> int:
        """The side length of a square that covers a fraction of the image: odd, at least 3."""
        side = max(round(math.sqrt(fraction * height * width)), 3)
        return min(side + (side % 2 == 0), height, width)

    def propose(self) -> tuple[Tensor, Tensor]:
        size = self._sizes[self._step]
        draws = self._numbers[self._row, self._step]
        self._step += 1
        spans = torch.tensor([self._height, self._width] * 2, device=draws.device) - size + 1
        top, left, other_top, other_left = (draws[:, :4] * spans).long().unsqueeze(2).unbind(1)
        sides = torch.full_like(top, size)
        window = _box(top, left, sides, self._height, self._width)
        other = _box(other_top, other_left, sides, self._height, self._width)
        change = self.here - self._clean
        unused = (self._eps**2 - change.square().sum((1, 2, 3))).clamp_min(0) / change.shape[1]
        budget = (change.square() * (window | other)).sum((2, 3)) + unused.unsqueeze(1)
        place = _flat(top, left, size, self._width).unsqueeze(1).expand(-1, change.shape[1], -1)
        old = change.flatten(2).gather(2, place)
        signs = draws[:, 5:].sub(0.5).sign().unsqueeze(2)
        new = _unit(old) + signs * self._oriented(size, draws[:, 4]).flatten(1).unsqueeze(1)
        new = _unit(new) * budget.sqrt().unsqueeze(2)
        change = change.masked_fill(other, 0).flatten(2).scatter(2, place, new).view_as(change)
        return torch.arange(len(self._row), device=self._row.device), self._at_budget(change)

    def take(self, rows: Tensor, proposals: Tensor) -> None:
        self.here[rows] = proposals

    def select(self, keep: Tensor) -> None:
        self.here, self._clean, self._row = self.here[keep], self._clean[keep], self._row[keep]

    def over(self) -> Tensor:
        return torch.full_like(self._row, self._step >= len(self._sizes), dtype=torch.bool)

    def _at_budget(self, change: Tensor) -> Tensor:
        length = norm_of(change, "l2").clamp_min(1e-12)
        return (self._clean + change * scale_like(self._eps / length, change)).clamp(0, 1)

    def _oriented(self, size: int, draws: Tensor) -> Tensor:
        """Opposite bumps (..., size, size) of length 1, stacked or side by side depending on ``draws`` (...)."""
        bumps = _opposite_bumps(size).to(draws)
        return torch.where(draws[..., None, None] < 0.5, bumps, bumps.T)


@functools.cache
def _opposite_bumps(size: int) -> Tensor:
    """Two hills of opposite signs, one above the other, (size, size) of length 1."""
    bumps = torch.cat([_bump(size // 2, size), -_bump(size - size // 2, size)])
    return functional.normalize(bumps.flatten(), dim=0).view_as(bumps)


def _bump(height: int, width: int) -> Tensor:
    """A hill of nested rectangles around the middle, (height, width) (equation 2 of the paper)."""
    steps = max(height, width) // 2
    heights = (1 / torch.arange(1, steps + 2).double().square()).flip(0).cumsum(0).flip(0)
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    bump: Tensor = heights[torch.maximum(down.unsqueeze(1), across)]
    return bump


def _unit(windows: Tensor) -> Tensor:
    return functional.normalize(windows, dim=2)


def _inside(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Which of ``length`` positions are inside each span: starts and sizes (...) -> (..., length) booleans."""
    places = torch.arange(length, device=start.device)
    return (places >= start.unsqueeze(-1)) & (places < (start + size).unsqueeze(-1))


def _box(top: Tensor, left: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """(N, 1) tops, lefts and side lengths -> (N, 1, H, W) booleans."""
    return _inside(top, size, height).unsqueeze(3) & _inside(left, size, width).unsqueeze(2)


def _flat(top: Tensor, left: Tensor, size: int, width: int) -> Tensor:
    """Positions of the windows' pixels in a flat image: (N, 1) tops and lefts -> (N, size * size)."""
    places = torch.arange(size, device=top.device)
    return ((top + places).unsqueeze(2) * width + (left + places).unsqueeze(1)).flatten(1)
