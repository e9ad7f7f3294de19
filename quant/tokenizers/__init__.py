"""Tokenizers between Hugging Face / MLX directories and GGUF metadata, without torch."""
