"""The classifier's ONNX graph, the purifier's, and the two combined."""
