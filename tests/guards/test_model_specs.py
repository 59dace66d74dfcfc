"""guard() of MODEL specs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

import purifier
from purifier.errors import ConfigError

SPEC = "torchvision:shufflenet_v2_x0_5"


def test_weights_of_a_spec(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=2).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    images = torch.rand(2, 3, 64, 64)
    own = purifier.guard(SPEC, "identity", weights=tmp_path / "w.pth", preprocessing=purifier.Preprocessing())
    torch.testing.assert_close(own(images), trained(images))
    assert purifier.guard(SPEC, "identity", random_weights=True).preprocessing.crop == 224


@pytest.mark.parametrize("option", [{"weights": "w.pth"}, {"random_weights": True}])
def test_a_module_takes_no_weights(option) -> None:
    with pytest.raises(ConfigError, match="only a MODEL spec takes weights"):
        purifier.guard(torch.nn.Identity(), "identity", **option)


@pytest.mark.parametrize(
    ("option", "said"),
    [({"weights": {}}, "weights: expected the name of a file, got dict"), ({"random_weights": "no"}, "True or False")],
)
def test_weights_that_are_no_file_are_an_error(option, said) -> None:
    with pytest.raises(ConfigError, match=said):
        purifier.guard(SPEC, "identity", **option)
