"""Somebody else's ONNX graph, ours, and the two in one."""
