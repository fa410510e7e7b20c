"""Weights → fp32 ONNX graphs, one module per builder name of `model.toml`. No torch: `onnx.helper` only."""
