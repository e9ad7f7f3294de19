"""LoRA adapters in the forms of MLX, PEFT and llama.cpp: each read into the same matrices, and written from them."""
