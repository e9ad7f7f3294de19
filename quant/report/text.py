"""The text on which models are judged: one of our own, which no importance matrix was computed on, or a person's."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import UsageError
from quant.chunks import Text
from quant.imatrix.texts import default_texts, texts_of_files

OWN_TEXT = "our evaluation text"
_OWN = Path(__file__).with_name("evaluation.txt")


@dataclass(frozen=True)
class JudgingText:
    """What is read.

    Attributes:
        name: For the report; of a file without its folder.
        texts: It.
        sha256: Of its bytes in UTF-8.
        is_ours: It came with the program; a person's own text leaves no copy behind.
    """

    name: str
    texts: tuple[Text, ...]
    sha256: str
    is_ours: bool


def judging_text(path: str, imatrix: str) -> JudgingText:
    """Read the text that models are judged on.

    ``evaluation.txt`` was written for this project, as the calibration text was (prose, dialogue, code, tables, maths,
    eight other languages, in passages that alternate); the two share no sentence.

    Args:
        path: A text file; empty for our own.
        imatrix: What the importance matrix is taken from, as :class:`quant.importance.ImportanceChoice` has it.

    Raises:
        UsageError: The importance matrix is computed on this very text: it would look better than it is.
        QuantizeError: The file cannot be read.
    """
    ours = not path
    texts, names = texts_of_files([_OWN if ours else Path(path)])
    found = JudgingText(OWN_TEXT if ours else names[0], texts, _sha256(texts), ours)
    calibration = _calibration(imatrix)
    if found.sha256 in {_sha256((text,)) for text in calibration} | {_sha256(calibration)}:
        raise UsageError(
            f"The importance matrix would be computed on {found.name}, which the models are judged on.",
            "Give another --text, or another --imatrix.",
        )
    return found


def _calibration(imatrix: str) -> tuple[Text, ...]:
    if imatrix == "default":
        return default_texts()[0]
    path = Path(imatrix)
    return texts_of_files([path])[0] if path.is_file() and path.suffix.lower() in (".txt", ".md", ".raw") else ()


def _sha256(texts: tuple[Text, ...]) -> str:
    return hashlib.sha256("".join(text.text for text in texts).encode("utf-8", "replace")).hexdigest()
