"""Certified accuracy against the radius, as an SVG picture."""

from __future__ import annotations

from html import escape

from ..certifying.certificates import Certificates

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 60, 40, 20, 50
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.line{stroke:#0b5c93;stroke-width:2;fill:none}"
    ".band{fill:#0b5c93;opacity:.18}"
)


def certified_plot(certificates: Certificates) -> str:
    """A line of the share of images that are right and certified, with its 95% interval, at every radius."""
    largest = max([certificates.largest_radius, *certificates.budgets]) or 1.0
    places = sorted({0.0, *(radius for radius in certificates.radii if radius > 0), largest})
    rates = [certificates.certified(place) for place in places]

    def x(radius: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * radius / largest

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def stairs(shares: list[float]) -> list[str]:
        """By smoothing, images of a radius are certified below it only; by bounds, at it too."""
        points = [(x(0.0), y(shares[0]))]
        for start, end, before, share in zip(places, places[1:], shares, shares[1:], strict=False):
            corner = (x(start), y(share)) if certificates.method == "bounds" else (x(end), y(before))
            points += [corner, (x(end), y(share))]
        return [f"{one:.1f},{other:.1f}" for one, other in points]

    low, high = (stairs([rate.interval[side] for rate in rates]) for side in (0, 1))
    about = certificates.data
    below = f"{certificates.norm} radius; {certificates.how}"
    title = f"{certificates.classifier['description']}, {about['count']} images of {about['name']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22">{escape(title)}</text>',
    ]
    for percent in (0, 25, 50, 75, 100):
        at = y(percent / 100)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{percent}%</text>')
    for step in certificates.round_radii():
        lines.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{step:g}</text>')
    lines += [
        f'<polygon class="band" points="{" ".join([*low, *reversed(high)])}"/>',
        f'<polyline class="line" points="{" ".join(stairs([rate.share for rate in rates]))}"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{below}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
