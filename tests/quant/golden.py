"""Makes ``golden_logits.json``, what transformers computes for families that mlx-lm lacks; torch is needed for that.

PYTHONPATH=. python tests/quant/golden.py   # torch 2.13.0, transformers 5.23.0
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.fakes.hf_models import write_hf_model

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 384, 48)]


def main() -> None:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    golden = {}
    for kind in ("falcon", "falcon-40b", "bert"):
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            directory = write_hf_model(Path(scratch), kind)
            if kind == "bert":
                model = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False)
                found = model(torch.tensor([TOKENS])).last_hidden_state.mean(1)[0]
            else:
                model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
                found = model(torch.tensor([TOKENS])).logits[0, ::8, ::16]
        golden[kind] = np.round(found.numpy().astype(float), 6).tolist()
    Path(__file__).with_name("golden_logits.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
