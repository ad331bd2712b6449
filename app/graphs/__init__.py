"""The architectures, as weightless ONNX graphs."""
