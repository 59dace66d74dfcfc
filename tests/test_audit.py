"""audit(): what it counts, what it refuses, and that nobody can overclaim."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import purifier
from purifier import Attack, Threat
from purifier.audit import AuditReport, audit, print_report, read_attack, wilson
from purifier.classifier import TorchPixelClassifier
from purifier.data import ImageData, load_data
from purifier.errors import AuditError, ConfigError, FileError, GradientError, OutputError, PixelError
from purifier.guard import guard
from purifier.pixels import Preprocessing
from purifier.seeding import SampleGenerator

COUNT = 60
PGD = "pgd:steps=5"


@dataclass(frozen=True)
class NoConfig:
    pass


class Noisy(purifier.Purifier):
    Config, gradient = NoConfig, "exact"

    def draw(self, pixels: Tensor, generator: SampleGenerator) -> Tensor:
        return generator.normal(pixels.shape[1:], pixels)

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return pixels if noise is None else (pixels + 0.3 * noise).clamp(0, 1)


class Masking(purifier.Purifier):
    """A broken defence: it hides its gradient by rounding and filters nothing."""

    Config, gradient = NoConfig, "exact"

    def purify(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        return (pixels * 255).round() / 255


@dataclass(frozen=True)
class Give(Attack):
    """Hands back made-up images."""

    make: object = None
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def perturb(self, target, pixels, labels, threat, generator):
        return self.make(pixels, labels)


@dataclass(frozen=True)
class OnlySome(Attack):
    """FGSM on the images of some classes, nothing on the others."""

    parity: int = 0
    needs: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def perturb(self, target, pixels, labels, threat, generator):
        found = read_attack("fgsm").attack.perturb(target, pixels, labels, threat, generator)
        return torch.where((labels % 2 == self.parity).view(-1, 1, 1, 1), found, pixels)


@dataclass(frozen=True)
class Queries(Attack):
    """Random noise, kept where the prediction turns."""

    needs: ClassVar[str] = "scores"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def perturb(self, target, pixels, labels, threat, generator):
        sign = 2 * (generator.uniform(pixels.shape[1:], pixels) > 0.5) - 1
        tried = threat.project(pixels + threat.eps * sign, pixels)
        return torch.where((target(tried).argmax(1) != labels).view(-1, 1, 1, 1), tried, pixels)


class NearestMean(nn.Module):
    """The nearest class mean, a linear classifier: real, and made without training."""

    def __init__(self) -> None:
        super().__init__()
        train = load_data("fashion-mnist:train:2000")
        pixels, labels = train.batch(range(len(train)))
        means = torch.stack([pixels[labels == k].mean(0).flatten() for k in range(10)])
        self.head = nn.Linear(784, 10)
        self.head.weight.data, self.head.bias.data = means, -0.5 * means.square().sum(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(images.flatten(1)))


@pytest.fixture(scope="module")
def classifier() -> NearestMean:
    return NearestMean().eval()


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(f"fashion-mnist:test:{COUNT}")


@pytest.fixture(scope="module")
def report(classifier, data) -> AuditReport:
    return audit(guard(classifier, "blur"), data, eps=0.05, attacks=(PGD, "fgsm"))


@pytest.fixture(scope="module")
def onnx_classifier(classifier, tmp_path_factory) -> onnx.ModelProto:
    weight, bias = classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy()
    nodes = [
        onnx.helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "nearest-mean",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def rows(report: AuditReport, **wanted) -> list:
    return [row for row in report.rows if all(getattr(row, key) == value for key, value in wanted.items())]


def correct(report: AuditReport, **wanted) -> float:
    (row,) = rows(report, **wanted)
    return row.result.correct


def worst(report: AuditReport, model: str, scope: str) -> float:
    (case,) = (case for case in report.worst_case if case.model == model and case.scope == scope)
    return case.result.correct


def comparable(report: AuditReport) -> list:
    return [replace(row, seconds=0.0) for row in report.rows]


def test_every_attack_and_route_has_its_row(report):
    assert [(row.model, row.attack, row.route) for row in report.rows] == [
        ("undefended", "none", None),
        ("guarded", "none", None),
        ("guarded", PGD, "exact"),
        ("guarded", PGD, "bpda"),
        ("undefended", PGD, "exact"),
        ("guarded", PGD, "oblivious"),
        ("guarded", "fgsm", "exact"),
        ("guarded", "fgsm", "bpda"),
        ("undefended", "fgsm", "exact"),
        ("guarded", "fgsm", "oblivious"),
    ]
    assert all(row.result.count == COUNT and row.worst_of_n is None for row in report.rows)
    assert all(row.result.interval == wilson(row.result.correct, COUNT) for row in report.rows)
    (fgsm,) = rows(report, model="guarded", attack="fgsm", route="exact")
    assert (fgsm.gradients_per_image, fgsm.queries_per_image) == (1, 1)
    assert fgsm.options == {"loss": "ce"} and fgsm.threat == Threat("linf", 0.05)


def test_its_figures_are_those_counted_by_hand(report, classifier, data):
    pixels, labels = data.batch(range(COUNT))
    blur = purifier.load("blur")
    clean = classifier(pixels).argmax(1) == labels
    guarded = classifier(blur.purify(pixels)).argmax(1) == labels
    assert correct(report, model="undefended", attack="none") == clean.sum()
    assert correct(report, model="guarded", attack="none") == guarded.sum()
    leaf = pixels.clone().requires_grad_()
    nn.functional.cross_entropy(classifier(leaf), labels, reduction="sum").backward(inputs=[leaf])
    attacked = (pixels + 0.05 * leaf.grad.sign()).clamp(0, 1)
    assert (
        correct(report, model="undefended", attack="fgsm") == (clean & (classifier(attacked).argmax(1) == labels)).sum()
    )
    assert (
        correct(report, model="guarded", attack="fgsm", route="oblivious")
        == (guarded & (classifier(blur.purify(attacked)).argmax(1) == labels)).sum()
    )


def test_the_white_box_finds_more_than_the_oblivious_attack(report):
    exact, oblivious = (correct(report, model="guarded", attack=PGD, route=r) for r in ("exact", "oblivious"))
    assert exact < oblivious < correct(report, model="guarded", attack="none")


def test_an_oblivious_figure_is_never_called_white_box(report):
    for case in report.worst_case:
        assert ("oblivious" in case.routes) == (case.scope == "all" and case.model == "guarded")
        assert case.result.correct <= min(
            row.result.correct for row in report.rows if row.model == case.model and row.route in (None, *case.routes)
        )
    only = audit_quickly(report, routes=("oblivious",))
    assert {(case.model, case.scope) for case in only.worst_case} == {
        ("undefended", "all"),
        ("undefended", "white-box"),
        ("guarded", "all"),
    }


def audit_quickly(like: AuditReport, **options) -> AuditReport:
    settings = {"eps": 0.05, "attacks": ("fgsm",), **options}
    return audit(guard(NearestMean(), "blur"), load_data(f"fashion-mnist:test:{COUNT}"), **settings)


def test_the_worst_case_is_per_image_over_all_attacks(classifier, data):
    guarded = guard(classifier, "identity")
    halves = audit(guarded, data, eps=0.1, attacks=(OnlySome(0), OnlySome(1)), routes=("exact",))
    whole = audit(guarded, data, eps=0.1, attacks=("fgsm",), routes=("exact",))
    expected = correct(whole, model="guarded", attack="fgsm")
    assert worst(halves, "guarded", "all") == worst(halves, "undefended", "white-box") == expected
    assert all(row.result.correct > expected for row in halves.rows)


def test_an_attack_cannot_leave_its_budget(classifier, data):
    honest = {
        norm: audit(
            guard(classifier, "identity"), data, norm=norm, eps=0.02, attacks=(Give(lambda x, y: 1e3 - 2e3 * x),)
        )
        for norm in ("linf", "l2")
    }
    pixels, labels = data.batch(range(COUNT))
    for norm, found in honest.items():
        moved = Threat(norm, 0.02).project(1e3 - 2e3 * pixels, pixels)
        right = (classifier(moved).argmax(1) == labels) & (classifier(pixels).argmax(1) == labels)
        assert worst(found, "guarded", "all") == right.sum() > 20


def test_an_image_wrong_when_clean_stays_broken(classifier, data):
    means = classifier.head.weight.detach().view(10, 1, 28, 28)
    repair = Give(lambda pixels, labels: means[labels])
    found = audit(guard(classifier, "identity"), data, eps=1, attacks=(repair,))
    (row,) = rows(found, model="guarded", route="exact")
    assert row.result.correct == correct(found, model="guarded", attack="none") < COUNT


def test_an_attack_may_not_change_what_it_was_given(classifier, data):
    vandal = Give(lambda pixels, labels: pixels.zero_() + labels.zero_().view(-1, 1, 1, 1))
    found = audit(guard(classifier, "identity"), data, eps=0.0, attacks=(vandal, "fgsm"))
    assert all(row.result.correct == found.rows[0].result.correct for row in found.rows)


@pytest.mark.parametrize("filter_", ["blur", "vae:image_shape=1x28x28,channels=4,latent=8,sample=true"])
def test_batch_size_and_repetition_change_nothing(filter_, classifier, data):
    torch.manual_seed(0)
    guarded = guard(classifier, filter_)
    first, second, small = (
        audit(guarded, data, eps=0.05, attacks=("pgd:steps=3", "rfgsm"), batch_size=size, seed=4)
        for size in (60, 60, 7)
    )
    assert comparable(first) == comparable(second)
    assert [row.result for row in small.rows] == [row.result for row in first.rows]
    assert [row.gradients_per_image for row in small.rows] == pytest.approx(
        [row.gradients_per_image for row in first.rows]
    )


def test_a_random_purifier_is_judged_again_and_again(classifier, data):
    guarded = guard(classifier, Noisy(NoConfig()))
    found = audit(guarded, data, eps=0.1, attacks=("fgsm",), eot=3, judgements=4)
    assert (found.eot, found.judgements) == (3, 4)
    for row in rows(found, model="guarded"):
        assert row.worst_of_n.count == COUNT
        assert row.worst_of_n.correct < row.result.correct < COUNT
        assert (4 * row.result.correct) % 1 == 0
    assert all(row.worst_of_n is None for row in rows(found, model="undefended"))
    (exact,) = rows(found, model="guarded", route="exact")
    assert exact.gradients_per_image == 3
    (case,) = (c for c in found.worst_case if c.model == "guarded" and c.scope == "white-box")
    assert case.worst_of_n.correct <= exact.worst_of_n.correct


def test_eot_and_judgements_are_one_for_a_deterministic_purifier(report):
    again = audit_quickly(report, eot=7, judgements=9)
    assert (again.eot, again.judgements) == (1, 1)
    assert comparable(again) == comparable(audit_quickly(report))


def test_the_judges_noise_is_not_the_attackers(classifier, data):
    seen = []

    class Spy(Noisy):
        def purify(self, pixels, noise=None):
            seen.append(noise[0, 0, 0, 0].item())
            return super().purify(pixels, noise)

    audit(guard(classifier, Spy(NoConfig())), data, eps=0.1, attacks=("pgd:steps=2",), judgements=3, routes=("exact",))
    # Three clean judgements; a look, two gradients and a last look; three judgements.
    assert len(seen) == len(set(seen)) == 3 + 4 + 3


def test_a_masked_gradient_is_seen_through_by_bpda(classifier, data):
    found = audit(guard(classifier, Masking(NoConfig())), data, eps=0.1, attacks=(PGD,))
    exact, bpda = (correct(found, model="guarded", route=route) for route in ("exact", "bpda"))
    assert bpda < exact
    assert worst(found, "guarded", "white-box") <= bpda


def test_a_surrogate_purifier_has_no_exact_route(classifier, data):
    found = audit(guard(classifier, "bit-depth"), data, eps=0.05, attacks=("fgsm",))
    assert {row.route for row in rows(found, model="guarded")} == {None, "bpda", "oblivious"}
    with pytest.raises(GradientError, match=r"BitDepth has no exact gradient .* use the route bpda"):
        audit(guard(classifier, "bit-depth"), data, attacks=("fgsm",), routes=("exact",))


def test_several_budgets_are_several_threats(classifier, data):
    found = audit(guard(classifier, "identity"), data, eps=(0.02, 0.1), attacks=("fgsm",), routes=("bpda",))
    small, large = rows(found, model="guarded", route="bpda")
    assert (small.threat.eps, large.threat.eps) == (0.02, 0.1)
    assert large.result.correct < small.result.correct
    assert [case.threat.eps for case in found.worst_case if case.model == "guarded"] == [0.02, 0.02, 0.1, 0.1]


def test_modules_are_given_back_as_they_were(data):
    class Backward(OnlySome):
        def perturb(self, target, pixels, labels, threat, generator):
            leaf = pixels.clone().requires_grad_()
            target(leaf).sum().backward()
            return pixels + threat.eps * leaf.grad.sign()

    module = NearestMean().train()
    module.head.bias.requires_grad_(False)
    filter_ = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    guarded = guard(module, filter_)
    filter_.encoder.train()
    found = audit(guarded, data, eps=0.1, attacks=(Backward(),))
    assert found.complete
    assert module.training and module.drop.training and not module.head.bias.requires_grad
    assert module.head.weight.requires_grad
    assert filter_.encoder.training and not filter_.decoder.training
    assert all(weight.requires_grad for weight in filter_.parameters())
    assert all(weight.grad is None for weight in (*module.parameters(), *filter_.parameters()))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_it_judges_in_evaluation_mode(data, classifier, report):
    found = audit(guard(NearestMean().train(), "blur"), data, eps=0.05, attacks=("fgsm",))
    assert correct(found, model="guarded", attack="none") == correct(report, model="guarded", attack="none")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, y: x[:, :, 1:], r"attack 'Give:.*' must return images \(60, 1, 28, 28\), got \(60, 1, 27, 28\)"),
        (lambda x, y: None, "must return images .*, got NoneType"),
        (lambda x, y: x * float("nan"), "attack 'Give:.*' returned NaN or infinity on the route 'exact'"),
    ],
)
def test_an_attack_that_breaks_its_contract_is_named(make, said, classifier, data):
    with pytest.raises(AuditError, match=said):
        audit(guard(classifier, "identity"), data, attacks=(Give(make),))


def test_an_attack_that_fails_is_recorded_and_the_others_go_on(classifier, data, tmp_path):
    def fail(pixels: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such luck")

    found = audit(guard(classifier, "identity"), data, eps=0.1, attacks=(Give(fail), "fgsm"), batch_size=25)
    assert not found.complete
    failed = [row for row in found.rows if row.error]
    assert {row.error for row in failed} == {"ValueError: no such luck"} and len(failed) == 4
    assert all(row.result is None and row.threat for row in failed)
    assert correct(found, model="guarded", attack="fgsm", route="exact") == worst(found, "guarded", "all")
    assert not any(case.complete for case in found.worst_case)
    shown = printed(found)
    assert "error: ValueError: no such luck" in shown and "upper bound only" in shown
    assert AuditReport.load(found.save(tmp_path)) == found


def test_a_session_is_judged_as_it_runs_without_noise(onnx_classifier, data):
    torch.manual_seed(0)
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8,sample=true")
    session = guard(onnx_classifier, vae)
    found = audit(session, data, attacks=())
    pixels, labels = data.batch(range(COUNT))
    (logits,) = session.run(None, {"images": pixels.numpy()})
    assert correct(found, model="guarded") == (logits.argmax(1) == labels.numpy()).sum()
    assert found.judgements == 1 and found.purifier["plugin"] == "vae"


def test_an_onnx_classifier_is_audited_clean_and_by_queries(onnx_classifier, data, report):
    guarded = guard(onnx_classifier, "blur")
    with pytest.raises(GradientError, match=r"an ONNX model gives none; give the torch module instead"):
        audit(guarded, "npz:nowhere.npz")
    clean = audit(guarded, data, attacks=())
    assert [row.attack for row in clean.rows] == ["none", "none"] and not clean.worst_case
    for model in ("undefended", "guarded"):
        assert correct(clean, model=model) == correct(report, model=model, attack="none")
    queried = audit(guarded, data, eps=0.3, attacks=(Queries(),))
    assert {row.route for row in rows(queried, attack="Queries")} == {"none", "oblivious"}
    assert {case.scope for case in queried.worst_case} == {"all"}
    assert worst(queried, "undefended", "all") < correct(queried, model="undefended", attack="none")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"routes": ("sideways",)}, ConfigError, "route must be one of exact, bpda, oblivious, none, got 'sideways'"),
        ({"routes": ("none",)}, ConfigError, "attack 'fgsm' needs gradient and can follow exact, bpda, oblivious"),
        ({"attacks": ("fgsm", "fgsm")}, ConfigError, "attack 'fgsm' is given twice"),
        ({"attacks": "fgsm"}, ConfigError, r"expected a list of ATTACK specs, got 'fgsm'; write \['fgsm'\]"),
        ({"attacks": (OnlySome(),), "norm": "l2"}, ConfigError, "attack 'OnlySome' works in linf, not in l2"),
        ({"attacks": ("fgms",)}, purifier.PurifierError, "no plugin 'fgms'; did you mean 'fgsm'"),
        ({"eps": ()}, ConfigError, r"expected one budget or several different ones, got \(\)"),
        ({"eps": (0.1, 0.1)}, ConfigError, "several different ones"),
        ({"eps": 8}, ConfigError, "try 8/255"),
        ({"batch_size": 0}, ConfigError, "batch_size must be at least 1, got 0"),
        ({"eot": 0}, ConfigError, "eot must be at least 1"),
        ({"judgements": 0}, ConfigError, "judgements must be at least 1"),
        ({"device": "abacus"}, ConfigError, "device 'abacus' cannot be used"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(options, error, said, report):
    with pytest.raises(error, match=said):
        audit_quickly(report, progress=lambda *_: pytest.fail("work began"), **options)


def test_data_that_does_not_fit_is_refused(classifier, data):
    images, _ = data.batch(range(COUNT))
    many = ImageData("many", images, torch.arange(COUNT))
    with pytest.raises(AuditError, match=r"many has labels up to 59, torch NearestMean has 10 logits"):
        audit(guard(classifier, "identity"), many, attacks=())
    small = ImageData("small", images[:, :, :20, :20], torch.zeros(COUNT, dtype=torch.int64))
    with pytest.raises(AuditError, match=r"torch NearestMean cannot take an image \(1, 20, 20\) of small"):
        audit(guard(classifier, "identity"), small, attacks=())
    with pytest.raises(PixelError, match=r"small: expected images \(N, 1, 28, 28\), got \(1, 1, 20, 20\)"):
        audit(guard(classifier, "vae:image_shape=1x28x28,channels=4,latent=8"), small, attacks=())


def test_progress_counts_up_to_its_total(report):
    steps = []
    audit_quickly(report, batch_size=25, progress=lambda *step: steps.append(step))
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert {total for _, total, _ in steps} == {3 * (1 + 3)}
    assert steps[0][2] == "fgsm exact linf 0.05" and steps[-1][:2] == (12, 12)


def test_a_report_is_saved_and_loaded_as_it_was(report, classifier, data, tmp_path):
    noisy = audit(guard(classifier, Noisy(NoConfig())), data, attacks=("fgsm",), out=tmp_path / "new" / "noisy")
    assert AuditReport.load(tmp_path / "new" / "noisy") == noisy
    commanded = replace(report, command=["purifier", "audit"])
    assert AuditReport.load(commanded.save(tmp_path)) == commanded
    raw = json.loads((tmp_path / "report.json").read_text())
    assert next(iter(raw)) == "schema_version" and raw["schema_version"] == 1
    assert raw["data"] == {"name": f"fashion-mnist:test:{COUNT}", "count": COUNT}
    assert raw["preprocessing"]["layout"] == "NCHW"
    assert raw["purifier"] == {"plugin": "blur", "config": {"sigma": 1.0}, "file": None, "sha256": None}
    assert set(raw["versions"]) == {"purifier", "torch", "onnxruntime", "python"}
    assert raw["rows"][2]["accuracy"] == raw["rows"][2]["correct"] / COUNT
    assert len(raw["rows"][2]["interval"]) == 2 and raw["rows"][2]["route"] == "exact"


def test_a_report_names_the_checkpoint(classifier, data, tmp_path):
    vae = purifier.load("vae:image_shape=1x28x28,channels=4,latent=8")
    purifier.save(vae, tmp_path / "vae.safetensors")
    found = audit(guard(classifier, tmp_path / "vae.safetensors"), data, attacks=())
    assert found.purifier["plugin"] == "vae" and found.purifier["file"] == "vae.safetensors"
    assert len(found.purifier["sha256"]) == 64 and found.purifier["config"]["latent"] == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read .*report.json: No such file"),
        ("{", "report.json is not JSON"),
        ("[]", "expected a report of schema version 1, got None"),
        ('{"schema_version": 99}', "expected a report of schema version 1, got 99"),
        ('{"schema_version": 1, "rows": 3}', "is not a whole report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(FileError, match=said):
        AuditReport.load(tmp_path / "report.json")


def test_an_unwritable_folder_is_found_before_the_work(report, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot write .*taken"):
        audit_quickly(report, out=tmp_path / "taken", progress=lambda *_: pytest.fail("work began"))


def printed(report: AuditReport) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    return console.file.getvalue()


def test_the_table_shows_the_worst_case_first_and_both_models_side_by_side(report):
    lines = printed(report).splitlines()
    places = [
        next(i for i, line in enumerate(lines) if part in line)
        for part in (f"on {COUNT} images", "all routes (exact, bpda, oblivious)", "white-box (exact, bpda)", "fgsm")
    ]
    assert places == sorted(places)
    (row,) = rows(report, model="guarded", attack="fgsm", route="oblivious")
    (line,) = (line for line in lines if "fgsm" in line and "oblivious" in line)
    assert f"{row.result.accuracy:.1%}" in line
    (alone,) = rows(report, model="undefended", attack="fgsm")
    low, high = alone.result.interval
    assert f"{alone.result.accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]" in line


def test_the_table_tells_of_repeated_judgement(classifier, data):
    found = audit(guard(classifier, Noisy(NoConfig())), data, attacks=("fgsm",), eot=2)
    assert "means over 5 judgements" in printed(found) and "means over 2 draws" in printed(found)


def test_attacks_read_back_from_their_spec():
    named = read_attack(replace(read_attack("pgd").attack, steps=7))
    assert named.spec == "pgd:steps=7" and read_attack(named.spec).attack == named.attack


def test_the_judge_uses_the_guards_preprocessing(classifier, data):
    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return classifier((images / 255).permute(0, 3, 1, 2).contiguous())

    wants = Preprocessing(scale=255, layout="NHWC")
    scaled = audit(guard(Scaled(), "blur", preprocessing=wants), data, eps=0.05, attacks=("fgsm",))
    plain = audit(guard(classifier, "blur"), data, eps=0.05, attacks=("fgsm",))
    assert [row.result for row in scaled.rows] == [row.result for row in plain.rows]
    assert isinstance(guard(Scaled(), "blur").pixel_classifier(), TorchPixelClassifier)


def test_an_exported_classifier_is_audited(classifier, data, tmp_path, report):
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(classifier, (torch.rand(2, 1, 28, 28),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "classifier.pt2")
    found = audit(guard(tmp_path / "classifier.pt2", "blur"), data, eps=0.05, attacks=(PGD, "fgsm"))
    assert [row.result for row in found.rows] == [row.result for row in report.rows]
