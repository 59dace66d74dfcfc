"""Presets: which attacks an audit runs, in which order, if none are named."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

DEFAULT_PRESET = "standard"


@dataclass(frozen=True)
class Preset:
    """ATTACK specs, strongest first; those that cannot work on a guard or in a norm are left out."""

    attacks: tuple[str, ...]
    sequence: bool = True
    """Each attack gets only the images that those before it left right: the worst case costs least so."""
    sweep: tuple[int, ...] = ()
    """For random purifiers: numbers of noise draws with which the first attack runs once more each, on all images."""


PRESETS = {
    "quick": Preset(("fgsm", "pgd:steps=20", "square:queries=200", "noise"), sequence=False),
    # Croce & Hein 2020, "Reliable evaluation of adversarial robustness": AutoAttack's standard version.
    "standard": Preset(("apgd-ce", "apgd-t", "fab-t", "square")),
    "thorough": Preset(
        (
            "apgd-ce",
            "apgd-ce:steps=200,restarts=2",  # against the first: does doubling change anything?
            "apgd-t:restarts=2",
            "apgd-dlr:restarts=2",
            "fab-t:restarts=2",
            "fmn",
            "cw",
            "ead",
            "latent-match",
            "joint",
            "square",
            "spsa",
            "hopskipjump",
            "transfer",
            "noise",
        ),
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
