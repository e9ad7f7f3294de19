"""How a reranker reads a query and a document, as llama.cpp's own server puts them together.

Cross-encoders of BERT's family read ``<bos> query <eos> <sep> document <eos>``, of which a vocabulary has some.
Generative ones (Qwen3-Reranker) carry a ``rerank`` template with the places ``{query}`` and ``{document}``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve.engine.prompt import mark_specials, split_marked
from serve.engine.text_model import Vocabulary

_PLACE = re.compile(r"\{(query|document)\}")


@dataclass(frozen=True)
class PairFormat:
    """Of one model.

    Attributes:
        before: Token ids before the query.
        between: Those between query and document.
        after: Those after the document.
        template: Replaces all of these where the model has one.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    template: str | None = None


def pair_prompts(
    vocabulary: Vocabulary, pair_format: PairFormat, query: str, documents: Sequence[str]
) -> Iterator[list[int]]:
    """The token ids of ``query`` with each of ``documents``; what they hold is text, never a special token."""
    if pair_format.template is not None:
        for document in documents:
            yield _rendered(vocabulary, pair_format.template, {"query": query, "document": document})
        return
    words = vocabulary.tokenize(query, add_special=False, parse_special=False)
    for document in documents:
        text = vocabulary.tokenize(document, add_special=False, parse_special=False)
        yield [*pair_format.before, *words, *pair_format.between, *text, *pair_format.after]


def _rendered(vocabulary: Vocabulary, template: str, texts: dict[str, str]) -> list[int]:
    marked = {name: mark_specials(text, vocabulary.find_specials) for name, text in texts.items()}
    # Both at once: a query may hold the words "{document}".
    prompt = _PLACE.sub(lambda place: str(marked[place[1]]), template)
    tokens: list[int] = []
    for piece, parse_special in split_marked(prompt):
        tokens += vocabulary.tokenize(piece, add_special=False, parse_special=parse_special)
    return tokens
