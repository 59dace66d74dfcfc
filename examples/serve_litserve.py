"""Serve an exported guard over HTTP with LitServe: ``python serve_litserve.py guarded.onnx [--port 8000]``.

It needs ``litserve``, ``onnxruntime-gpu`` and the file that ``purifier export`` wrote, but not purifier. POST
``{"pixels": [[[...]]]}``, the image (C, H, W) as the classifier takes it, to ``/predict``.
"""

import argparse
from typing import Any

import litserve
import numpy as np
import onnxruntime
from pydantic import BaseModel, field_validator


class Photo(BaseModel):
    """What a request must have; any other is answered with status 422."""

    pixels: list[list[list[float]]]

    @field_validator("pixels")
    @classmethod
    def in_rows(cls, pixels: list[list[list[float]]]) -> list[list[list[float]]]:
        np.asarray(pixels, dtype=np.float32)  # raises ValueError for rows of different lengths
        return pixels


class Guarded(litserve.LitAPI):
    """One session a worker; requests that arrive together are answered as one batch."""

    def __init__(self, file: str, **options: Any) -> None:
        super().__init__(**options)
        self.file = file

    def setup(self, device: str) -> None:
        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        self.session = onnxruntime.InferenceSession(self.file, providers=[provider])
        image = self.session.get_inputs()[0]
        self.input, self.shape = image.name, image.shape[1:]
        if not all(isinstance(size, int) for size in self.shape):
            raise ValueError(f"{self.file} takes images {self.shape}; export it with --image-shape")

    def decode_request(self, request: Photo) -> np.ndarray:  # LitServe reads this annotation
        image = np.asarray(request.pixels, dtype=np.float32)
        # An error would fail the whole batch, with the requests of others; NaN gets no answer.
        return image if image.shape == (*self.shape,) else np.full(self.shape, np.nan, np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: images})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        if not np.isfinite(output).all():  # a bad image: of another size, or NaN, infinity or values out of range
            return {"class": None, "logits": None}
        return {"class": int(output.argmax()), "logits": output.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")
    given = parser.parse_args()
    api = Guarded(given.file, max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator=given.accelerator).run(port=given.port, generate_client_file=False)
