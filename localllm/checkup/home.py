"""Checks of the home directory and of what is in it."""

import shutil

from localllm.checkup.finding import Finding
from localllm.errors import SettingsError
from localllm.memory import gigabytes
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.settings import load_settings

_SCARCE, _LOW = 1_000_000_000, 10_000_000_000  # bytes free on the disk; a 7B model takes about 5 GB


def check_disk(home: Home, free: int | None = None) -> list[Finding]:
    """Room on the disk that holds the home.

    Args:
        home: The home.
        free: Bytes free; None asks the system.
    """
    free = shutil.disk_usage(home.root).free if free is None else free
    text = f"Free on the disk: {gigabytes(free)}"
    if free < _SCARCE:
        return [Finding("problem", text, "Free some room, or set LOCALLLM_HOME to another disk.")]
    if free < _LOW:
        return [Finding("warn", text, "A model of 7 billion weights takes about 5 GB.")]
    return [Finding("ok", text)]


def check_settings(home: Home) -> list[Finding]:
    """Whether the settings can be read, from the file and from the environment."""
    try:
        load_settings(home.settings_file)
    except SettingsError as error:
        return [Finding("problem", error.message, error.hint)]
    return [Finding("ok", "Settings: valid" if home.settings_file.exists() else "Settings: the defaults")]


def check_models(store: ModelStore) -> list[Finding]:
    """Models that are here, and those that are damaged."""
    models = store.list()
    size = gigabytes(sum(model.size for model in models))
    findings = [
        Finding("ok", f"Models: {len(models)} ({size})")
        if models
        else Finding("warn", "Models: none yet", "`localllm pull starter` fetches a small one to begin with.")
    ]
    findings += [
        Finding(
            "problem",
            f"Files of {model.model_name} are missing or cut short",
            f"Pull it again: localllm pull {model.source}",
        )
        for model in models
        if not store.is_whole(model)
    ]
    findings += [
        Finding("problem", f"The model in {path} is damaged", "Remove that directory, and pull the model again.")
        for path in store.damaged()
    ]
    return findings


def check_partial(home: Home) -> list[Finding]:
    """Downloads that were begun and not finished."""
    files = [path for path in home.partial.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    if not size:
        return []
    names = ", ".join(sorted({one_line(path.relative_to(home.partial).parts[0], 60) for path in files})[:3])
    return [
        Finding(
            "warn",
            f"Unfinished downloads take {gigabytes(size)}: {names}",
            f"`localllm pull` of the same source goes on where it stopped; or remove {home.partial}.",
        )
    ]
