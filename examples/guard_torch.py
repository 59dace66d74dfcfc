"""Put a purifier in front of a torch classifier that takes normalised images, and flag unusual images.

Run it with ``python examples/guard_torch.py``.
"""

import torch
from torch import Tensor, nn

import purifier
from purifier.assets.classifier import demo_classifier

MEAN, STD = 0.286, 0.353


class Normalised(nn.Module):
    """Stands for your own classifier: it takes images with mean 0 and standard deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = demo_classifier()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images * STD + MEAN)


def main() -> None:
    """Guard the classifier and compare it with itself."""
    classifier = Normalised().eval()
    pixels, labels = purifier.load_data("demo:200").batch(range(200))
    images = (pixels - MEAN) / STD

    filter_ = purifier.load("demo")
    purifier.calibrate(filter_, "demo:200", fpr=0.05)  # in real use: images that neither of the two has seen

    preprocessing = purifier.Preprocessing(mean=(MEAN,), std=(STD,))
    guarded = purifier.guard(classifier, filter_, preprocessing=preprocessing, on_reject="flag")

    with torch.no_grad():
        alone = classifier(images)
        logits, rejected = guarded(images)
    print(f"right without the guard: {(alone.argmax(1) == labels).float().mean():.1%}")
    print(f"right behind the guard:  {(logits.argmax(1) == labels).float().mean():.1%}")
    print(f"flagged as unusual:      {rejected.float().mean():.1%}")

    with torch.no_grad():
        _, rejected = guarded((torch.rand_like(pixels) - MEAN) / STD)
    print(f"flagged among noise:     {rejected.float().mean():.1%}")


if __name__ == "__main__":
    main()
