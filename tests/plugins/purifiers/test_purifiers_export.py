"""``gmvae`` and ``latent`` as ONNX: plain onnxruntime gives the same results as torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import purifier
from purifier.contracts.purifier import Purifier

SIZE = "image_shape=1x8x8,channels=4,depth=1"


class Classifier(nn.Module):
    """Any classifier will do that tells purified images apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

    def forward(self, photos: Tensor) -> Tensor:
        return self.layers(photos)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases with a strongly non-linear decoder and a mixture of unequal parts."""
    folder = tmp_path_factory.mktemp("bases")
    for name, options in (("vae", "latent=5"), ("gmvae", "latent=5,components=3"), ("map", "latent=2,spatial=true")):
        torch.manual_seed(0)
        made = purifier.load(f"{'gmvae' if name == 'gmvae' else 'vae'}:{SIZE},{options}")
        with torch.no_grad():
            for key, weight in made.named_parameters():
                weight.copy_(2 * weight if "coder" in key else torch.randn(weight.shape))
        purifier.save(made, folder / f"{name}.safetensors")
    return folder


def pixels(count: int) -> Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(count))


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All of a graph's and of the graphs in its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def check_export(made: Purifier, path: Path) -> list[str]:
    """Export behind a classifier, run at several batch sizes; the operators used."""
    classifier = Classifier().eval()
    purifier.export(purifier.guard(classifier, made, score=True), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    moved = 0.0
    for count in (1, 2, 7, 13):
        logits, scores = session.run(None, {"photos": pixels(count).numpy()})
        with torch.no_grad():
            purified, score = made.purify_and_score(pixels(count))
            np.testing.assert_allclose(logits, classifier(purified), atol=1e-4)
            moved = max(moved, float((classifier(purified) - classifier(pixels(count))).abs().max()))
        np.testing.assert_allclose(scores, score, atol=1e-4, rtol=1e-4)
    assert moved > 0.01, "a purifier that changes nothing tells nothing"
    model = onnx.load(path)
    assert not model.functions
    used = [node.op_type for node in nodes(model.graph)]
    assert not [kind for kind in used if kind.startswith(("Random", "Multinomial", "Bernoulli"))]
    return used


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("strength=2", marks=pytest.mark.integration),
        pytest.param("strength=0,score=prior", marks=pytest.mark.slow),
    ],
)
def test_gmvae(folder: Path, tmp_path: Path, options: str) -> None:
    plain = purifier.load(str(folder / "gmvae.safetensors"))
    made = purifier.load(f"gmvae:{SIZE},latent=5,components=3,{options}")
    made.load_state_dict(plain.state_dict())
    assert "Loop" not in check_export(made, tmp_path / "guarded.onnx")


@pytest.mark.parametrize(
    ("base", "options"),
    [
        pytest.param("vae", "steps=3,restarts=2", marks=pytest.mark.integration),
        pytest.param("vae", "steps=6", marks=pytest.mark.slow),
        pytest.param("gmvae", "steps=3,start=random,restarts=2,beta=0.5", marks=pytest.mark.slow),
        pytest.param("vae", "steps=3,start=bank,bank=20,restarts=2", marks=pytest.mark.slow),
        pytest.param("map", "steps=3,optimizer=momentum,lr=10,momentum=0.7,beta=0.2", marks=pytest.mark.slow),
    ],
)
def test_latent_unrolled_and_as_a_loop(folder: Path, tmp_path: Path, base: str, options: str) -> None:
    found = {}
    for loop in (False, True):
        path = tmp_path / f"{loop}.onnx"
        used = check_export(purifier.load(f"latent:base={folder / base}.safetensors,{options},loop={loop}"), path)
        found[loop] = used.count("Loop"), len(used), path.stat().st_size
    assert (found[False][0], found[True][0]) == (0, 1)
    assert found[True][1] < 0.75 * found[False][1]
    assert found[True][2] < found[False][2]


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_steps_are_traced_as_one_loop(folder: Path, optimizer: str) -> None:
    """What torch traces, without the slow translation to ONNX."""
    made = purifier.load(f"latent:base={folder}/gmvae.safetensors,steps=4,beta=0.1,optimizer={optimizer},loop=true")
    with torch.no_grad():
        program = torch.export.export(made, (pixels(3),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("while_loop") == 1 and "aten.sigmoid.default" in called


@pytest.mark.parametrize("start", ["encoder", "random", "bank"])
def test_the_batch_stays_free(folder: Path, start: str) -> None:
    made = purifier.load(f"latent:base={folder}/gmvae.safetensors,steps=2,start={start},restarts=2")
    with torch.no_grad():
        program = torch.export.export(made, (pixels(3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.testing.assert_close(program.module()(pixels(5)), made(pixels(5)))
