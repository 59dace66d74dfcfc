"""ONNX graphs computed by torch: any classifier in a file gets gradients."""
