"""Tensors in files: safetensors and GGUF, read and written by rows, so that memory does not grow with the model."""
