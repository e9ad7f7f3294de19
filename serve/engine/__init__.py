"""The engine: one child process a model, continuous batching on llama.cpp's low-level API."""
