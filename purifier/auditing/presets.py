"""Presets: named lists of the attacks that an audit runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

DEFAULT_PRESET = "standard"
PROBED = 64
"""The default of ``probes``: how many images are used to look for flags."""


EVADING: dict[bool, tuple[str, ...]] = {True: ("joint",), False: ("joint-square",)}
"""The attack on classifier and detector together, with and without gradients of the classifier (Tramer 2022)."""
BY_LABELS = "hopskipjump"
"""The attack that every preset runs where the classifier gives labels only (Chen et al. 2020)."""


@dataclass(frozen=True)
class Preset:
    """ATTACK specs; attacks that do not support a guard or a norm are left out."""

    sequence: tuple[str, ...] = ()
    """Strongest first: each gets only the images that earlier ones left right, so the worst case costs least."""
    apart: tuple[str, ...] = ()
    """Each gets all images and has its own results."""
    sweep: tuple[int, ...] = ()
    """For random purifiers: the first attack of ``apart`` runs again with each of these numbers of noise draws."""


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
        # The second shows whether doubling the effort changes anything; joint needs all images to measure a detector.
        apart=("apgd-ce", "apgd-ce:steps=200,restarts=2", "joint"),
        sweep=(1, 10, 20),
    ),
}


def names_in(name: str) -> set[str]:
    """The names and the specs of all attacks that a preset may run."""
    preset = preset_of(name)
    specs = {*preset.sequence, *preset.apart, *(one for evading in EVADING.values() for one in evading), BY_LABELS}
    return specs | {spec.partition(":")[0] for spec in specs}


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises
    ------
    ConfigError
        There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
