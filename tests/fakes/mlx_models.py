"""A tiny Llama with random weights, as a directory that mlx-lm loads: 0.3 MB, the same at every call."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

N_VOCAB = 384
N_EMBD = 64
N_CTX = 512
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["the cat sat on the mat and looked at the moon", "one two three four five six seven", "naïve café, Zürich"]
_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": N_EMBD,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": N_VOCAB,
    "max_position_embeddings": N_CTX,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def make_model(
    directory: Path, *, seed: int = 0, template: str | None = TEMPLATE, dtype: str = "float32", **config: object
) -> Path:
    """Write the model.

    Args:
        directory: Made if it is not there.
        seed: Of the weights.
        template: The chat template, or None.
        dtype: Of the weights: ``float32`` or ``float16``.
        config: Put into config.json beside the rest, or instead of it.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    (directory / "config.json").write_text(json.dumps({**_CONFIG, "eos_token_id": end, **config}))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|im_end|>",
        "model_max_length": N_CTX,
    }
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = {name: array.astype(dtype) for name, array in _weights(seed).items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})
    return directory


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with some merges, three special tokens, one that is not, and BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|begin|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
    )
    return tokenizer


def make_adapter(directory: Path, *, seed: int = 1, scale: float = 20.0) -> Path:
    """Write a LoRA adapter of rank 4 for the attention of both layers, as mlx-lm's trainer would."""
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {"rank": 4, "scale": scale, "dropout": 0.5, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(2):
        for name, width in (("q_proj", 64), ("v_proj", 32)):
            prefix = f"model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_a"] = random.normal(0, 0.3, (N_EMBD, 4)).astype(np.float32)
            weights[f"{prefix}.lora_b"] = random.normal(0, 0.3, (4, width)).astype(np.float32)
    save_file(weights, directory / "adapters.safetensors")
    return directory


def _weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        # Wide enough that the next token depends on the text, and that no two tokens are nearly as likely.
        return random.normal(0, 2 / np.sqrt(columns), (rows, columns)).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": random.normal(0, 1, (N_VOCAB, N_EMBD)).astype(np.float32),
        "model.norm.weight": np.ones(N_EMBD, np.float32),
        "lm_head.weight": matrix(N_VOCAB, N_EMBD),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": np.ones(N_EMBD, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(N_EMBD, np.float32),
            f"{prefix}.self_attn.q_proj.weight": matrix(64, N_EMBD),
            f"{prefix}.self_attn.k_proj.weight": matrix(32, N_EMBD),
            f"{prefix}.self_attn.v_proj.weight": matrix(32, N_EMBD),
            f"{prefix}.self_attn.o_proj.weight": matrix(N_EMBD, 64),
            f"{prefix}.mlp.gate_proj.weight": matrix(128, N_EMBD),
            f"{prefix}.mlp.up_proj.weight": matrix(128, N_EMBD),
            f"{prefix}.mlp.down_proj.weight": matrix(N_EMBD, 128),
        }
    return weights
