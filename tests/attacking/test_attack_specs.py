"""ATTACK specs: read and written back; impossible options are errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from purifier.attacking.specs import read_attack
from purifier.errors import ConfigError


def test_attacks_read_back_from_their_spec():
    named = read_attack(replace(read_attack("pgd").attack, steps=7))
    assert named.spec == "pgd:steps=7" and read_attack(named.spec).attack == named.attack


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pgd:loss=hinge", "attack 'pgd': loss must be one of ce, dlr, margin, targeted, got 'hinge'"),
        ("fgsm:loss=hinge", "attack 'fgsm': loss must be one of ce, dlr, margin, targeted"),
        ("pgd:steps=0", "steps and restarts must be at least 1, got 0 and 1"),
        ("pgd:steps=many", "option 'steps': expected int, got 'many'"),
        ("pgd:step_size=-1", "step_size is a fraction of eps and must be positive"),
        ("pgd:restarts=3,random_start=false", "restarts without random_start all do the same"),
        ("rfgsm:alpha=1", r"alpha is a fraction of eps and must be in \[0, 1\), got 1.0"),
        ("pgd:moved=0", r"attack 'pgd': moved must be a fraction of the values in \(0, 1\], got 0.0"),
        ("pgd:moved=1.5", "moved must be"),
        ("bim:steps=0", "attack 'bim': steps must be at least 1, got 0"),
        ("bim:step_size=inf", "attack 'bim': step_size is a fraction of eps and must be positive, got inf"),
        ("bim:loss=hinge", "attack 'bim': loss must be one of ce, dlr, margin, targeted"),
        ("bim:restarts=2", "attack 'bim' has no option 'restarts'"),
        ("pgd:stepsize=1", "attack 'pgd' has no option 'stepsize'"),
    ],
)
def test_impossible_options_are_errors(spec, said):
    with pytest.raises(ConfigError, match=said):
        read_attack(spec)
