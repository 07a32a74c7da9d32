"""Kernels of our own for ONNX Runtime, compiled where they run; artifacts know nothing of them and never need them."""
