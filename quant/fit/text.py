"""What a model reads while groups of tensors are tried: a little of each kind of our own text."""

from quant.chunks import Text
from quant.imatrix.texts import default_texts

_CHARACTERS = 1500


def probing_texts() -> tuple[Text, ...]:
    """The start of every file of the calibration text.

    The importance matrix was measured on it too. That is fair here: what is compared are groups of tensors among each
    other, all seen through the same matrix; results are judged on other text.
    """
    texts, _ = default_texts()
    return tuple(Text(text.text[:_CHARACTERS]) for text in texts)
