"""Model families: one table each of what config.json and tensors are called in GGUF, and what changes on the way."""
