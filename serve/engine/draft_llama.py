"""A draft model on llama.cpp, loaded beside the model that it drafts for."""

import llama_cpp as lib

from localllm.errors import EngineLoadError
from serve.engine.backend import LlamaBackend
from serve.engine.draft import Drafter
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.llama_adapters import LoadedAdapters
from serve.engine.speculation import MAX_GUESSING
from serve.engine.step_meter import StepMeter

# Models of one family pad their vocabularies differently; llama.cpp allows as much.
_MAX_DIFFERENCE = 128
_HINT = "Set `draft` to a smaller model of the same family, or to nothing."


def load_drafter(
    target: LlamaModel, path: str, *, n_ctx: int, n_gpu_layers: int, n_threads: int, meter: StepMeter
) -> Drafter:
    """Load the draft model in ``path``.

    Args:
        target: The model that it drafts for.
        path: Its GGUF file.
        n_ctx: Tokens of the target's context; the draft's own is as long, where it was trained for that.
        n_gpu_layers: Layers on the GPU; -1 is all.
        n_threads: CPU threads.
        meter: Told how long llama.cpp takes.

    Raises:
        EngineLoadError: llama.cpp refuses the file, there is no memory for it, or it cannot draft for ``target``.
    """
    model = LlamaModel(path, n_gpu_layers)
    difference = vocabulary_difference(target, model)
    if not difference and (model.is_recurrent or not model.has_decoder):
        difference = "its state cannot take a wrong guess back"
    if difference:
        model.close()
        raise EngineLoadError(f"The draft model cannot draft for this one: {difference}.", _HINT)
    context = LlamaContext(
        model,
        n_ctx=min(n_ctx, model.n_ctx_train),
        n_batch=512,
        n_seq=MAX_GUESSING,
        n_threads=n_threads,
    )
    backend = LlamaBackend(model, context, MAX_GUESSING, LoadedAdapters(model, context), meter)
    return Drafter(backend, min(model.n_vocab, target.n_vocab))


def vocabulary_difference(target: LlamaModel, draft: LlamaModel) -> str:
    """Why a token of one model is not the same token of the other; empty where they agree.

    The rules are those of llama.cpp's own speculative decoding.
    """
    if lib.llama_vocab_type(target.vocab) != lib.llama_vocab_type(draft.vocab):
        return "their tokenizers are of different kinds"
    if abs(target.n_vocab - draft.n_vocab) > _MAX_DIFFERENCE:
        return f"their vocabularies have {target.n_vocab} and {draft.n_vocab} tokens"
    for name in ("bos", "eos"):
        ids = getattr(target, name), getattr(draft, name)
        if ids[0] != ids[1]:
            return f"their {name.upper()} tokens are {ids[0]} and {ids[1]}"
    if target.add_bos != draft.add_bos:
        return "only one of them begins its texts with BOS"
    text = lib.llama_vocab_get_text
    for token in range(min(target.n_vocab, draft.n_vocab)):
        if text(target.vocab, token) != text(draft.vocab, token):
            return f"token {token} has different texts"
    return ""
