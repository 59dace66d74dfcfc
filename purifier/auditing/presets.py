"""Presets: which attacks an audit runs, in which order, if none are named."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

DEFAULT_PRESET = "standard"
PROBED = 64
"""On how many images flags are looked for by default."""


@dataclass(frozen=True)
class Preset:
    """ATTACK specs; those that cannot work on a guard or in a norm are left out."""

    sequence: tuple[str, ...] = ()
    """Strongest first: each gets only the images that those before it left right, so the worst case costs least."""
    apart: tuple[str, ...] = ()
    """Each gets all images, and so has figures of its own."""
    sweep: tuple[int, ...] = ()
    """For random purifiers: numbers of noise draws with which the first attack apart runs once more each."""


PRESETS = {
    "quick": Preset(apart=("fgsm", "pgd:steps=20", "square:queries=200", "noise")),
    # Croce & Hein 2020, "Reliable evaluation of adversarial robustness": the four of AutoAttack's standard version.
    "standard": Preset(("apgd-ce", "apgd-t", "fab-t", "square")),
    "thorough": Preset(
        (
            "apgd-t:finalists=9",
            "apgd-dlr:restarts=2",
            "fab-t:finalists=9",
            "fmn",
            "cw",
            "ead",
            "latent-match",
            "square",
            "spsa",
            "hopskipjump",
            "transfer",
            "noise",
        ),
        # Does doubling change anything? And what a detector is worth is seen on all images.
        apart=("apgd-ce", "apgd-ce:steps=200,restarts=2", "joint"),
        sweep=(1, 10, 20),
    ),
}


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises
    ------
    ConfigError
        There is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
