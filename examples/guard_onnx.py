"""Put a purifier in front of an ONNX classifier, export the two, and run the file in plain onnxruntime.

Run it with ``python examples/guard_onnx.py``; it writes to a temporary folder.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import purifier


def main() -> None:
    """Guard an ONNX file, and export the guard."""
    with tempfile.TemporaryDirectory() as folder:
        somebody_elses = Path(folder) / "classifier.onnx"
        purifier.export(purifier.guard("demo", "identity"), somebody_elses, image_shape=(1, 28, 28))

        session = purifier.guard(somebody_elses, "demo", score=True)
        pixels, labels = purifier.load_data("demo:200").batch(range(200))
        name = session.get_inputs()[0].name
        logits, score = session.run(None, {name: pixels.numpy()})
        print(f"right behind the guard: {(logits.argmax(1) == labels.numpy()).mean():.1%}")
        print(f"median score: {np.median(score):.4g}")

        report = purifier.export(session, Path(folder) / "guarded.onnx")
        print(f"guarded.onnx: {report.size / 1e6:.1f} MB, opset {report.opset}")

        plain = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
        again = plain.run(None, {name: pixels.numpy()})[0]
        print(f"same classes in plain onnxruntime: {(again.argmax(1) == logits.argmax(1)).mean():.1%}")


if __name__ == "__main__":
    main()
