"""Makes ``golden_logits.json``, what transformers computes where mlx-lm cannot be asked; torch is needed for that.

    PYTHONPATH=. python tests/quant/golden.py [MINILM GEMMA]   # torch 2.13.0, transformers 5.23.0

MINILM is the directory of all-MiniLM-L6-v2 as its package has it, GEMMA that of Gemma 3 270M as ``from_gguf`` unpacks
its Q4_K_M to F32. Without them only the tiny models are computed anew.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.fakes.hf_models import write_hf_model

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 48)]
# "[CLS] … [SEP]" and "<bos>…" of "A small model on your own computer answers questions about the river, the bridge and
# the old mill; it costs 3,50 € an hour."
MINILM_TOKENS = [101, 1037, 2235, 2944, 2006, 2115, 2219, 3274, 6998, 3980, 2055, 1996, 2314, 1010, 1996, 2958, 1998]
MINILM_TOKENS += [1996, 2214, 4971, 1025, 2009, 5366, 1017, 1010, 2753, 1574, 2019, 3178, 1012, 102]
GEMMA_TOKENS = [2, 236776, 1944, 2028, 580, 822, 1852, 5194, 12102, 4137, 1003, 506, 8858, 236764, 506, 11825, 532, 506]
GEMMA_TOKENS += [2255, 2612, 236793, 625, 5384, 236743, 236800, 236764, 236810, 236771, 11361, 614, 6468, 236761]
GEMMA_POSITIONS, GEMMA_VOCABULARY = slice(None, None, 4), slice(None, None, 2048)


def main() -> None:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    def embedding(directory: Path, tokens: list[int]) -> np.ndarray:
        model = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False)
        return model(torch.tensor([tokens])).last_hidden_state.mean(1)[0].numpy()

    def logits(directory: Path, tokens: list[int]) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return model(torch.tensor([tokens])).logits[0].numpy()

    path = Path(__file__).with_name("golden_logits.json")
    golden = json.loads(path.read_text())
    found = {}
    with torch.no_grad():
        for kind in ("falcon", "falcon-40b", "bert"):
            with tempfile.TemporaryDirectory() as scratch:
                directory = write_hf_model(Path(scratch), kind)
                found[kind] = embedding(directory, TOKENS) if kind == "bert" else logits(directory, TOKENS)[::8, ::16]
        if len(sys.argv) > 1:
            found["all-minilm-l6-v2"] = embedding(Path(sys.argv[1]), MINILM_TOKENS)
            found["gemma-3-270m"] = logits(Path(sys.argv[2]), GEMMA_TOKENS)[GEMMA_POSITIONS, GEMMA_VOCABULARY]
    golden |= {kind: np.round(values.astype(float), 6).tolist() for kind, values in found.items()}
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
