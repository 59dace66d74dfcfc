"""The built-in attacks in versions that a test can afford, and what is expected of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attack_helpers import Noisy, Same
from purifier.vocabulary import Norm

ALL: tuple[Norm, ...] = ("linf", "l2", "l1")
TWO: tuple[Norm, ...] = ("linf", "l2")
EPS: dict[Norm, float] = {"linf": 0.08, "l2": 1.5, "l1": 15}


@dataclass(frozen=True)
class Row:
    """An attack that a test can afford, and what is expected of it.

    Of 12 real images it misclassifies at least ``fools``, within ``times`` the budgets above. On a linear classifier
    ``linear`` (by default the same spec) misclassifies all images whose distance from the boundary is below ``near``
    times the budget, among as many ``classes``; None: how many is not known. ``within_budget``: even before the core
    projects.
    """

    spec: str
    norms: tuple[Norm, ...] = ALL
    fools: int = 6
    times: float = 1
    linear: str = ""
    near: float | None = 0.95
    classes: tuple[int, ...] = (2,)
    random: bool | None = False
    """None: only a second start is random, and few images need one."""
    within_budget: bool = True
    library: str = ""


ROWS = [
    Row("fgsm", TWO, near=0.999),
    Row("fgsm", ("l1",), near=None),
    Row("rfgsm", TWO, fools=3, linear="rfgsm:alpha=0", near=0.999, random=True),
    Row("rfgsm", ("l1",), near=None, random=True),
    # The random step can lead away by alpha, which leaves at least 1 - 2 alpha.
    Row("rfgsm:alpha=0.2,loss=margin", TWO, near=0.6, random=True),
    Row("pgd:steps=5", TWO, linear="pgd", random=True),
    Row("pgd:steps=5,restarts=2,loss=margin", TWO, random=True),
    Row("pgd:steps=5,random_start=false", TWO, near=0.999),
    Row("pgd:steps=8", ("l1",), near=None, random=True),
    Row("pgd:steps=8,moved=0.2,random_start=false,loss=dlr", ("l1",), near=None),
    Row("joint:steps=10", TWO, linear="joint:steps=20", random=True),
    Row("bim:steps=5", TWO, near=0.999),
    Row("mim:steps=5", TWO, near=0.999),
    Row("apgd-ce:steps=8", linear="apgd-ce:steps=30", near=0.99, random=True),
    Row("apgd-dlr:steps=8,restarts=2", linear="apgd-dlr:steps=30", near=0.99, random=True),
    Row("apgd-t:steps=8,targets=4,finalists=2", linear="apgd-t:steps=30", near=0.99, random=True),
    Row("fab-t:steps=6,targets=2", linear="fab-t:steps=10", near=0.94, classes=(2, 4), within_budget=False),
    Row("fab-t:steps=4,targets=2,restarts=2", ("l2",), near=None, within_budget=False),
    Row("deepfool:steps=10,candidates=3", TWO, linear="deepfool", classes=(2, 4), within_budget=False),
    Row("cw:steps=15,searches=4", ("l2",), 3, 1, "cw:steps=60,step_size=0.001", 0.8, (2, 4), within_budget=False),
    Row("ead:steps=10,searches=4", ("l1",), linear="ead:steps=100", near=0.8, classes=(2, 4), within_budget=False),
    Row("fmn:steps=8", linear="fmn", near=0.8, classes=(2, 4), within_budget=False),
    Row("square:queries=40,restarts=2", ("linf",), 5, 2, linear="square:queries=600", near=0.85, random=True),
    Row("square:queries=40,restarts=2", ("l2",), 5, 2, linear="square:queries=600", near=0.6, random=True),
    Row("joint-square:queries=40", ("linf",), 4, 2, linear="joint-square:queries=600", near=0.8, random=True),
    Row("joint-square:queries=40", ("l2",), 4, 2, linear="joint-square:queries=600", near=0.5, random=True),
    Row("spsa:steps=8,samples=16,lr=0.3", TWO, 4, 2, linear="spsa:steps=30,samples=40,lr=0.2", near=0.85, random=True),
    Row("hopskipjump:queries=300,init_samples=20", TWO, 4, 2, near=None, random=True, within_budget=False),
    Row("transfer:attacks=fgsm+pgd:steps=5", TWO, linear="transfer", random=True),
    Row("latent-match:steps=10,guide_steps=10,confidence=1,restarts=2", TWO, times=2, near=None, random=None),
    Row("noise", fools=1, times=8, near=None, random=True),
    # Attacks of other libraries that draw nothing: what they draw, they draw for a whole batch.
    Row("foolbox:LinfBasicIterativeAttack,steps=5", ("linf",), library="foolbox"),
    Row("foolbox:L2DeepFoolAttack,steps=5", ("l2",), fools=3, within_budget=False, library="foolbox"),
    Row("foolbox:L1FastGradientAttack", ("l1",), fools=4, near=None, library="foolbox"),
    Row("torchattacks:BIM", ("linf",), library="torchattacks"),
    Row("torchattacks:PGDL2,random_start=false", ("l2",), library="torchattacks"),
    Row("art:ProjectedGradientDescent,max_iter=5", TWO, library="art"),
    Row("art:FastGradientMethod", ("l1",), fools=0, near=None, library="art"),
    Row("pyautoattack:fab-t,n_iter=5", TWO, library="pyautoattack"),
]


class Space(Same):
    """Its latents are the pixels."""

    def latent_of(self, pixels: Tensor) -> Tensor:
        return pixels

    def decoded(self, latent: Tensor) -> Tensor:
        return latent.clamp(0, 1)


class NoisySpace(Space, Noisy):
    pass
