"""Settings: flag > environment (``LOCALLLM_*``) > ``settings.toml`` > default."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from localllm.errors import SettingsError
from localllm.files import write_atomic

_PREFIX = "LOCALLLM_"
_MEND = "Mend that line, or move the file away."


class Settings(BaseModel):
    """What a person can set. Each field is also the environment variable ``LOCALLLM_<FIELD IN CAPITALS>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("starter", description="The model a chat starts with.")
    theme: str = Field("localllm-dark", description="The app's colours.")
    host: str = Field("127.0.0.1", description="The address `localllm serve` binds; others than loopback need a key.")
    port: int = Field(11435, ge=0, le=65535, description="The port `localllm serve` binds; 0 takes a free one.")
    ctx: int = Field(0, ge=0, description="Context length in tokens; 0 chooses by the model and the memory.")
    threads: int = Field(0, ge=0, description="CPU threads for a model; 0 chooses by the machine.")
    gpu_layers: int = Field(-1, ge=-1, description="Layers on the GPU; -1 is all of them, 0 none.")
    kv_type: Literal["f16", "q8_0"] = Field("f16", description="Of the KV cache; q8_0 takes half the memory.")
    guess: int = Field(24, ge=0, le=64, description="Tokens guessed at once from the text so far; 0 never guesses.")
    draft: str = Field("", description="A small model that guesses for larger ones of its family; empty for none.")
    snapshots: float = Field(0, ge=0, description="Disk for what was made of long prompts, in GB; 0 keeps none.")
    memory_gb: float = Field(0, ge=0, description="Memory that models may use together; 0 chooses by the machine.")
    max_tokens: int = Field(0, ge=0, description="Longest answer in a chat; 0 means as long as the context allows.")
    temperature: float = Field(0.7, ge=0, le=5, description="Sampling temperature in a chat; 0 is greedy.")
    system_prompt: str = Field("", description="Put before every new conversation.")
    keep_alive: float = Field(
        300, ge=0, description="Seconds that an unused model, or server of the app, stays; 0 for ever."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What goes to the log file.")


def load_settings(
    file: Path, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from file, environment and flags, the later winning.

    Args:
        file: ``settings.toml``; absent is the same as empty.
        environ: The environment; ``os.environ`` by default.
        flags: Values given on the command line; ``None`` values are not given.

    Raises:
        SettingsError: An unknown name or a wrong value, named together with where it came from.
    """
    env = os.environ if environ is None else environ
    from_file = _parse(file, _text(file))
    # Other names with the prefix are no mistake: LOCALLLM_HOME, LOCALLLM_API_KEY (never in a file).
    variables = {name: _PREFIX + name.upper() for name in Settings.model_fields}
    from_env = {name: env[variable] for name, variable in variables.items() if variable in env}
    from_flags = {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return Settings.model_validate({**from_file, **from_env, **from_flags})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if name in from_flags:
            where = f"--{name.replace('_', '-')}"
        elif name in from_env:
            where = f"the environment variable {variables[name]}"
        else:
            where = str(file)
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(Settings.model_fields))
            raise SettingsError(
                f"There is no setting {name!r}; it stands in {where}.", f"There are: {known}."
            ) from error
        raise SettingsError(f"Setting {name!r} in {where}: {first['msg']}.", f"It was {first['input']!r}.") from error


def save_setting(file: Path, name: str, value: str | int | float) -> None:
    """Set one value in ``settings.toml`` and keep the person's comments and order.

    Raises:
        SettingsError: The file cannot be read or written, or the value is wrong.
        DiskFullError: There is no room; the file is as it was.
    """
    text = _text(file)
    _parse(file, text)  # its complaint about a damaged file is the one that a person knows from the start
    document = tomlkit.parse(text)
    document[name] = value
    text = tomlkit.dumps(document)
    try:
        Settings.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise SettingsError(f"Setting {name!r}: {error.errors()[0]['msg']}.") from error
    try:
        write_atomic(file, text)
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}.") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.", _MEND) from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from error


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.", _MEND) from error
