"""The importance matrix that a person asks for: from our own text, from their chats, from a file, or none."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from localllm.conversations import ConversationStore
from localllm.errors import InvalidModelError, UsageError
from localllm.models.manifest import Manifest
from localllm.paths import DIR_MODE, FILE_MODE, Home
from localllm.sanitize import one_line
from localllm.typed_paths import is_file, typed_path
from quant.child import CheckCancelled, Progress
from quant.chunks import Text
from quant.imatrix.collect import Calibration, collect_imatrix
from quant.imatrix.file import read_imatrix
from quant.imatrix.texts import Turns, default_texts, texts_of_chats, texts_of_files

DEFAULT, CHATS, NONE = "default", "chats", "none"

_TEXT_SUFFIXES = (".txt", ".md", ".raw")
_MAX_CTX = 512


@dataclass(frozen=True)
class ImportanceChoice:
    """What a person asks for.

    Attributes:
        kind: ``default``, ``chats``, ``none``, or the absolute path of an importance matrix or of a text.
    """

    kind: str

    @classmethod
    def parse(cls, text: str) -> "ImportanceChoice":
        """From what a person types.

        Raises:
            UsageError: It is none of the words, and no file.
        """
        if text in (DEFAULT, CHATS, NONE):
            return cls(text)
        path = typed_path(text)
        if not is_file(path):
            raise UsageError(
                f"{text!r} is no file to take an importance matrix from.",
                f"Give {DEFAULT}, {CHATS}, {NONE}, an importance matrix (.gguf, .dat) or a text (.txt).",
            )
        return cls(str(path))

    @property
    def record(self) -> dict[str, str]:
        """For a recipe: ``imatrix``, and of a file ``imatrix_sha256`` too, for it may hold something else tomorrow.

        Raises:
            UsageError: The file cannot be read.
        """
        if self.kind in (DEFAULT, CHATS, NONE):
            return {"imatrix": self.kind}
        try:
            with Path(self.kind).open("rb") as file:
                return {"imatrix": self.kind, "imatrix_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise UsageError(f"{one_line(self.kind)} cannot be read: {error.strerror}.") from error

    @property
    def is_used(self) -> bool:
        """Whether there will be one."""
        return self.kind != NONE


def obtain_imatrix(
    home: Home,
    choice: ImportanceChoice,
    parent: Manifest,
    model: Path,
    work: Path,
    *,
    n_threads: int | None = None,
    progress: Progress,
    check_cancelled: CheckCancelled,
) -> Path | None:
    """The file of the importance matrix for ``model``; measured where it is not here.

    That of our own text is kept under the home, for the next type. That of chats never is: it is in ``work`` only.

    Args:
        home: Where the chats are, and the importance matrices.
        choice: What is asked.
        parent: What ``model`` was taken from: names the file that is kept.
        model: A GGUF model.
        work: A directory for what is not kept.
        n_threads: CPU threads; None takes all fast cores.
        progress: Called with ("chunk", done, total).
        check_cancelled: Called ten times a second.

    Raises:
        InvalidModelError: The file is damaged, or the model is.
        QuantizeError: There is too little text.
    """
    if not choice.is_used:
        return None
    target = work / "imatrix.gguf"
    if choice.kind == CHATS:
        calibration = Calibration(*_chats(home), n_ctx=_n_ctx(parent))
    elif choice.kind == DEFAULT:
        calibration = default_calibration(parent)
        target = _kept(home, parent, calibration)
        if _is_readable(target):
            return target
    else:
        path = Path(choice.kind)
        if path.suffix.lower() not in _TEXT_SUFFIXES:
            read_imatrix(path)
            return path
        calibration = Calibration(*texts_of_files([path]), n_ctx=_n_ctx(parent))
    collect_imatrix(model, target, calibration, n_threads=n_threads, progress=progress, check_cancelled=check_cancelled)
    target.chmod(FILE_MODE)
    return target


def default_calibration(parent: Manifest) -> Calibration:
    """Our own text, made for this: prose, code and dialogue in several languages."""
    return Calibration(*default_texts(), n_ctx=_n_ctx(parent))


def _n_ctx(parent: Manifest) -> int:
    return min(parent.n_ctx_train or _MAX_CTX, _MAX_CTX)


def _kept(home: Home, parent: Manifest, calibration: Calibration) -> Path:
    """Named after the model's and the text's contents: another of either never finds it."""
    home.measured.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    digest = hashlib.sha256(parent.files[0].sha256.encode() + str(calibration.n_ctx).encode())
    for file in parent.files[1:]:
        digest.update(file.sha256.encode())
    for text in calibration.texts:
        digest.update(text.text.encode())
    return home.measured / f"{parent.name}-{digest.hexdigest()[:16]}-imatrix.gguf"


def _is_readable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_imatrix(path)
    except InvalidModelError:
        return False  # it is measured again, and replaced
    return True


def _chats(home: Home) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    store = ConversationStore(home.database)
    try:
        return texts_of_chats(store, _plainly)
    finally:
        store.close()


def _plainly(turns: Turns) -> str:
    """Turns as plain text: templates are rendered where models answer, which is above this package."""
    return "".join(f"{turn['role']}: {turn['content']}\n\n" for turn in turns)
