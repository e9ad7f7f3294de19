"""Formats and compression: HF/MLX to GGUF and back, quantization, sparsity, reports."""
