"""Data named as on the Hugging Face hub: fetched once into the home, by a process that may use the network.

The process that trains never does: its libraries are told so before they are imported.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localllm.errors import SourceNotFoundError
from localllm.models.sources.hub_rows import FetchedRows, HubRows, find_kept_rows
from localllm.paths import Home
from localllm.typed_paths import is_there
from quant.child import CheckCancelled, Progress, never_cancelled, no_progress, run_child

_WORKER = "finetune.data.hub_worker"


def fetch_named(
    given: Sequence[str],
    home: Home,
    *,
    commits: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> dict[str, FetchedRows]:
    """Fetch what is no file or directory here and has the form of a data set's name; by that name.

    To be called before :func:`localllm.mlx_setup.prepare_process`, which takes the network away.

    Args:
        given: A recipe's data.
        home: Keeps what was fetched.
        commits: Those that an earlier run has found, by name; what is here of them is taken without asking.
        say: Told what a name was taken for.
        progress: Told of a file, and the bytes of it.
        check_cancelled: Called ten times a second; what it raises ends the work, and what has come is kept.

    Raises:
        SourceNotFoundError, AccessDeniedError, NetworkError, ChecksumError, DiskFullError: As they are named.
        UsageError: It has several parts or splits, and none was named.
        DataError: It holds no rows.
    """
    fetched: dict[str, FetchedRows] = {}
    for text in given:
        wanted = HubRows.parse(text)
        if wanted is None or is_there(text):
            continue
        commit = (commits or {}).get(text, "")
        if commit and (kept := find_kept_rows(wanted, home, commit)):
            fetched[text] = kept
            continue
        say(f"{text} is no file here: it is taken for a data set of the Hugging Face hub.")
        request = {"home": str(home.root), "text": text, "commit": commit}
        try:
            found = run_child(
                _WORKER, request, what=f"fetching {text}", progress=progress, check_cancelled=check_cancelled
            )
        except SourceNotFoundError as error:
            raise SourceNotFoundError(
                f"There is no file or directory {text}. {error.message}", error.hint or "Check its spelling."
            ) from error
        files = tuple((Path(path), part) for path, part in found["files"])
        fetched[text] = FetchedRows(files, found["commit"], found["note"])
        if found["note"]:
            say(found["note"])
    return fetched
