"""An MLX model's tokens for :mod:`serve.engine.constraints`."""

from llguidance import LLTokenizer

from localllm.errors import RequestError
from serve.engine.constraints import GrammarVocabulary
from serve.engine.mlx_vocabulary import Vocabulary


def mlx_grammar_vocabulary(vocabulary: Vocabulary, n_vocab: int) -> GrammarVocabulary:
    """The model's tokens as llguidance wants them; takes up to a second.

    Args:
        vocabulary: The tokenizer.
        n_vocab: Width of the model's logits.

    Raises:
        RequestError: llguidance cannot read this kind of tokenizer.
    """
    try:
        tokenizer = LLTokenizer(vocabulary.to_json(), n_vocab=n_vocab, eos_token=sorted(vocabulary.end_tokens))
    except ValueError as error:
        raise RequestError(
            "This model's kind of tokenizer cannot be used with a grammar.", "Use a GGUF file of the model.", "model"
        ) from error
    return GrammarVocabulary(tokenizer, n_vocab)
