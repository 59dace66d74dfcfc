"""Which audit a journal is of: all that decides results tells audits apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from journal_helpers import SHORT, cut_off

from audit_helpers import Give, NearestMean, NoConfig, Noisy
from purifier.attacking.specs import read_attack
from purifier.auditing.audit import audit
from purifier.auditing.journal import differences
from purifier.errors import OutputError
from purifier.guards.guard import guard


@pytest.fixture(scope="module")
def guarded(classifier):
    return guard(classifier, "blur")


@pytest.fixture(scope="module")
def journal(guarded, data, tmp_path_factory) -> bytes:
    """The journal of the short audit, cut off."""
    out = tmp_path_factory.mktemp("journal")
    cut_off(guarded, data, out, KeyboardInterrupt(), 0.1)
    return (out / "audit.journal").read_bytes()


def put(content: bytes, folder: Path) -> None:
    (folder / "audit.journal").write_bytes(content)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"eps": 0.06}, "threats.0.eps was 0.05, is 0.06"),
        ({"attacks": ("fgsm", "pgd:steps=3", "noise")}, 'spec was "pgd:steps=2", is "pgd:steps=3"'),
        ({"batch_size": 30}, "batch_size was 20, is 30"),
        ({"keep_adversarial": True}, "keeps_adversarial was false, is true"),
    ],
)
def test_the_journal_of_another_audit_is_an_error(guarded, data, journal, tmp_path, options, said):
    put(journal, tmp_path)
    with pytest.raises(OutputError, match="another audit that was cut off: ") as caught:
        audit(guarded, data, **{**SHORT, **options}, out=tmp_path)
    assert said in str(caught.value) and "--overwrite" in str(caught.value)
    assert (tmp_path / "audit.journal").read_bytes() == journal


def test_other_weights_purifiers_and_images_are_other_audits(classifier, data, journal, tmp_path):
    put(journal, tmp_path)
    other = NearestMean().eval()
    with torch.no_grad():
        other.head.bias[3] += 1e-3
    images, labels = data.batch(range(60))
    images[59, 0, 3, 3] = 0.5
    for given, said in (
        ((guard(other, "blur"), data), "classifier.sha256 was"),
        ((guard(classifier, Noisy(NoConfig())), data), "purifier.plugin was"),
        ((guard(classifier, "blur"), (images, labels)), "data.name was"),
    ):
        with pytest.raises(OutputError, match=said):
            audit(*given, **SHORT, out=tmp_path)


class Temperature(torch.nn.Module):
    """Divides logits by a number that is neither a weight nor a buffer."""

    def __init__(self, inner: torch.nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, images):
        return self.inner(images) / self.by


def test_another_structure_with_the_same_weights_is_another_audit(classifier, data, tmp_path):
    options = {"attacks": ("fgsm",)}
    cut_off(guard(Temperature(classifier, 1.0), "blur"), data, tmp_path, KeyboardInterrupt(), 0.5, **options)
    with pytest.raises(OutputError, match="modules.classifier was"):
        audit(guard(Temperature(classifier, 9.0), "blur"), data, **{**SHORT, **options}, out=tmp_path)


def test_attacks_are_told_apart_by_their_options_in_every_process():
    def noise(pixels):
        return pixels

    def said(value):
        named = read_attack(Give(value))
        return named.spec, named.options

    assert said(torch.zeros(9999)) != said(torch.arange(9999.0))  # both print as [0., ..., 0.] and the like
    assert said(torch.zeros(9999)) == said(torch.zeros(9999))
    assert "noise" in said(noise)[0] and "0x" not in str(said(noise)) + str(said(object()))


def test_differences_name_the_place():
    before, now = {"a": {"b": [1, 2], "c": [2]}, "d": [1]}, {"a": {"b": [1, 3], "c": []}, "e": "x" * 100}
    assert list(differences(before, now)) == [
        "a.b.1 was 2, is 3",
        "a.c were 1, are 0",
        "d was [1], is null",
        f'e was null, is "{"x" * 56}...',
    ]
