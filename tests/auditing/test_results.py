"""What a report keeps besides its figures: each image's results, examples, all adversarial images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from audit_helpers import Give, NoConfig, Noisy
from purifier.auditing.audit import audit
from purifier.auditing.report import AuditReport
from purifier.data.images import ImageData
from purifier.errors import FileError, OutputError
from purifier.guards.guard import guard

EPS = 0.05


@pytest.fixture(scope="module")
def kept(classifier, data, tmp_path_factory) -> AuditReport:
    folder = tmp_path_factory.mktemp("kept")
    return audit(
        guard(classifier, "blur"), data, eps=EPS, attacks=("fgsm", "square:queries=20"), probes=6, out=folder,
        keep_adversarial=True, batch_size=25,
    )  # fmt: skip


def row_of(report: AuditReport, **wanted) -> int:
    (place,) = [
        place
        for place, row in enumerate(report.rows)
        if all(getattr(row, name) == value for name, value in wanted.items())
    ]
    return place


def test_the_results_of_the_images_add_up_to_the_figures(kept):
    found = kept.results
    assert found.counted.shape == (len(kept.rows), kept.data["count"])
    for row, counted in zip(kept.rows, found.counted, strict=True):
        assert counted.sum() == pytest.approx(row.result.correct)
    for case in kept.worst_case:
        members = [
            place
            for place, row in enumerate(kept.rows)
            if row.model == case.model and row.threat in (None, case.threat) and row.route in (None, *case.routes)
        ]
        assert found.worst(members).sum() == pytest.approx(case.result.correct)


def test_answers_and_margins_are_those_of_the_guard(kept, classifier, data):
    pixels, labels = data.batch(range(len(data)))
    with torch.no_grad():
        logits = guard(classifier, "blur")(pixels)
    clean, found = row_of(kept, model="guarded", attack="none"), kept.results
    assert found.labels.tolist() == labels.tolist()
    assert found.answers[clean].tolist() == logits.argmax(1).tolist()
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    margins = logits.gather(1, labels[:, None]).squeeze(1) - others
    np.testing.assert_allclose(found.margins[clean], margins, atol=1e-4)
    np.testing.assert_allclose(found.confidences[clean], logits.softmax(1).amax(1), atol=1e-5)
    assert ((found.margins[clean] > 0) == (found.own[clean] == 1)).all()


def test_adversarial_images_are_kept_on_request_and_give_the_recorded_answers(kept, classifier, data):
    place = row_of(kept, model="guarded", attack="fgsm", route="exact")
    images, indices = (torch.from_numpy(kept.details.adversarial[f"row{place}{end}"]) for end in ("", "_indices"))
    pixels, _ = data.batch(indices.tolist())
    assert (images - pixels).abs().max() <= EPS + 1e-6
    with torch.no_grad():
        answers = guard(classifier, "blur")(images).argmax(1)
    assert kept.results.answers[place][indices].tolist() == answers.tolist()
    assert kept.results.attacked[place].sum() == len(indices) == kept.rows[place].attacked


def test_examples_that_fell_are_wrong_and_those_that_held_are_right_under_every_attack(kept, classifier, data):
    found, results = kept.examples, kept.results
    assert found.fell.any() and not found.fell.all()
    worst = results.worst([place for place, row in enumerate(kept.rows) if row.model == "guarded"])
    purified, logits = guard(classifier, "blur").purifier.purify, guard(classifier, "blur")
    clean, _ = data.batch(found.indices.tolist())
    assert torch.equal(clean, torch.from_numpy(found.clean))
    adversarial = torch.from_numpy(found.adversarial)
    with torch.no_grad():
        assert found.answers[:, 1].tolist() == logits(adversarial).argmax(1).tolist()
        torch.testing.assert_close(torch.from_numpy(found.purified), purified(adversarial))
    for row, index, fell, (before, after), label in zip(
        found.rows, found.indices, found.fell, found.answers, found.labels, strict=True
    ):
        assert kept.rows[row].model == "guarded" and before == label == results.labels[index]
        assert (after != label) == fell == (results.own[row][index] < 0.5)
        assert fell or worst[index] == 1
        margins = [
            results.margins[place][index]
            for place, other in enumerate(kept.rows)
            if (other.model, other.threat) == ("guarded", kept.rows[row].threat)
        ]
        assert fell or results.margins[row][index] == min(margins)


def test_they_come_back_from_their_files_when_asked_for(kept, tmp_path):
    again = AuditReport.load(kept.save(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "results.npz", "examples.npz", "adversarial.npz",
    }  # fmt: skip
    assert again == kept
    for name in ("results", "examples"):
        for array, other in zip(vars(getattr(kept, name)).values(), vars(getattr(again, name)).values(), strict=True):
            np.testing.assert_array_equal(array, other)
    plain = audit_of(again)
    plain.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json"}
    assert AuditReport.load(tmp_path).results is None and AuditReport.load(tmp_path).examples is None


def audit_of(report: AuditReport) -> AuditReport:
    """The report without what is kept beside it, as a report of an earlier version is."""
    return dataclasses.replace(report, details=None)


def test_files_of_another_audit_and_damaged_ones_are_errors(kept, tmp_path):
    dataclasses.replace(kept, created="2000-01-01T00:00:00+00:00").save(tmp_path / "other")
    path = kept.save(tmp_path / "own")
    loaded = AuditReport.load(path)
    path.with_name("results.npz").write_bytes(b"not an archive")
    with pytest.raises(FileError, match=r"cannot read .*results.npz"):
        _ = loaded.results
    text = path.read_text().replace(kept.created, "1999-01-01T00:00:00+00:00")
    kept.save(tmp_path / "third")
    (tmp_path / "third" / "report.json").write_text(text)
    with pytest.raises(FileError, match="belongs to another audit: expected created '1999-01-01T00:00:00"):
        _ = AuditReport.load(tmp_path / "third").examples


def test_a_report_is_written_even_if_the_rest_cannot_be(kept, tmp_path):
    (tmp_path / "results.npz").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*results.npz: it is a folder"):
        kept.save(tmp_path)
    assert AuditReport.load(tmp_path) == kept


def test_pickles_are_never_loaded(kept, tmp_path):
    path = kept.save(tmp_path)
    with (tmp_path / "results.npz").open("wb") as file:
        np.savez(file, created=np.array([print], dtype=object))
    with pytest.raises(FileError, match="allow_pickle"):
        _ = AuditReport.load(path).results


def test_a_failed_attack_has_no_results(classifier, data):
    failing = Give(make=lambda pixels, labels: pixels * torch.nan)
    found = audit(guard(classifier, "blur"), data, eps=EPS, attacks=("noise", failing), probes=6)
    assert any(row.error for row in found.rows)
    for row, counted, answers in zip(found.rows, found.results.counted, found.results.answers, strict=True):
        assert np.isnan(counted).all() == (row.error is not None)
        assert (answers == -1).all() == (row.error is not None)
    guarded = [place for place, row in enumerate(found.rows) if row.model == "guarded"]
    assert np.isfinite(found.results.worst(guarded)).all()


def test_a_random_guard_has_shares(classifier, data):
    few = data.batch(range(12))
    found = audit(guard(classifier, Noisy(NoConfig())), few, eps=EPS, attacks=("fgsm",), judgements=3, eot=1, probes=6)
    shares = found.results.counted[row_of(found, model="guarded", attack="none")]
    assert set(np.round(3 * shares, 6)) <= {0, 1, 2, 3} and len(set(shares)) > 1


def test_class_names_come_from_the_data_or_are_given(classifier, data, tmp_path):
    few = ImageData("few", *data.batch(range(8)))
    assert audit(guard(classifier, "blur"), few, attacks=()).class_names is None
    assert audit(guard(classifier, "blur"), data, attacks=()).class_names[9] == "Ankle boot"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {k}" for k in range(10)))
    found = audit(guard(classifier, "blur"), few, attacks=(), class_names=names, out=tmp_path / "out")
    assert AuditReport.load(tmp_path / "out").class_names == found.class_names == [f"kind {k}" for k in range(10)]
