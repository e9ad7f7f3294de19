"""BERT as an embedder: all-MiniLM, BGE, E5 and others."""

from typing import Any

from quant.architectures.decoders import BLOCKS, CONTEXT, EMBEDDING, FEED_FORWARD, HEADS
from quant.architectures.family import Config, Family, Field, Metadata, Rule
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource

_LAYER = "encoder.layer.{}"


def _to_metadata(_: Config) -> dict[str, MetadataValue]:
    return {"attention.causal": False}


def _to_config(_: Metadata, source: TensorSource) -> dict[str, Any]:
    types = source.tensors.get("token_types.weight")
    return {"type_vocab_size": types.n_rows if types else 1}


BERT = Family(
    architecture="bert",
    model_types=("bert",),
    hf_class="BertModel",
    fields=(
        CONTEXT,
        EMBEDDING,
        BLOCKS,
        FEED_FORWARD,
        HEADS,
        Field("layer_norm_eps", "attention.layer_norm_epsilon", float, 1e-12),
    ),
    rules=(
        Rule("embeddings.word_embeddings", "token_embd"),
        Rule("embeddings.position_embeddings", "position_embd"),
        Rule("embeddings.token_type_embeddings", "token_types", optional=True),
        Rule("embeddings.LayerNorm", "token_embd_norm"),
        Rule(f"{_LAYER}.attention.self.query", "blk.{}.attn_q"),
        Rule(f"{_LAYER}.attention.self.key", "blk.{}.attn_k"),
        Rule(f"{_LAYER}.attention.self.value", "blk.{}.attn_v"),
        Rule(f"{_LAYER}.attention.output.dense", "blk.{}.attn_output"),
        Rule(f"{_LAYER}.attention.output.LayerNorm", "blk.{}.attn_output_norm"),
        Rule(f"{_LAYER}.intermediate.dense", "blk.{}.ffn_up"),
        Rule(f"{_LAYER}.output.dense", "blk.{}.ffn_down"),
        Rule(f"{_LAYER}.output.LayerNorm", "blk.{}.layer_output_norm"),
    ),
    assumed={"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
    constants={"hidden_act": "gelu", "position_embedding_type": "absolute"},
    # Of what BERT was trained with besides embeddings, nothing takes part in them.
    ignored=(r"embeddings\.position_ids", r"pooler\..*", r"cls\..*"),
    renamed=((r"^bert\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    tied=True,
    to_metadata=_to_metadata,
    to_config=_to_config,
)
