"""A C++ program that steps ONNX artifacts through libonnxruntime alone; nothing of it is Python."""
