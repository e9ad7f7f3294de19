"""A random Llama of mlx-lm, small enough to train in a test."""

from typing import Any

import numpy as np

from finetune.examples import Example


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A model with two blocks, width 32 and 97 tokens; fp32 on the CPU."""
    import mlx.core as mx
    from mlx_lm.models import llama

    mx.set_default_device(mx.cpu)
    mx.random.seed(seed)
    fields = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 97,
        "head_dim": 8,
        **changes,
    }
    model = llama.Model(llama.ModelArgs(**fields))
    mx.eval(model.parameters())
    return model


def random_examples(n: int, shortest: int = 4, longest: int = 30, n_vocab: int = 97, seed: int = 0) -> list[Example]:
    """Documents of random tokens, of which the first third is a prompt."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(n):
        length = int(rng.integers(shortest, longest + 1))
        tokens = rng.integers(0, n_vocab, length).astype(np.int32)
        examples.append(Example(tokens, np.arange(length) >= length // 3, f"rows.jsonl:{i + 1}"))
    return examples
