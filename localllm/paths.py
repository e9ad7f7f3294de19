"""Where everything lives: one home directory, private to the person."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from localllm.errors import SettingsError

DIR_MODE = 0o700
FILE_MODE = 0o600


@dataclass(frozen=True)
class Home:
    """The home directory and the names inside it. Creating one touches no disk; :meth:`ensure` does.

    Attributes:
        root: The directory that holds everything.
    """

    root: Path

    @classmethod
    def resolve(cls, environ: Mapping[str, str] | None = None) -> "Home":
        """The home of this person: ``LOCALLLM_HOME``, else the platform's data directory.

        On macOS ``~/Library/Application Support/localllm``, on Linux ``$XDG_DATA_HOME/localllm``.
        """
        env = os.environ if environ is None else environ
        chosen = env.get("LOCALLLM_HOME")
        root = Path(chosen).expanduser() if chosen else platformdirs.user_data_path("localllm", appauthor=False)
        return cls(root.absolute())

    @property
    def models(self) -> Path:
        """Model directories: ``models/<name>/<variant>/``."""
        return self.root / "models"

    @property
    def jobs(self) -> Path:
        """Long work, running and ended: ``jobs/<id>/``."""
        return self.root / "jobs"

    @property
    def adapters(self) -> Path:
        """LoRA adapters: ``adapters/<name>/``."""
        return self.root / "adapters"

    @property
    def datasets(self) -> Path:
        """Rows that were fetched from the hub: ``datasets/<org>--<name>/<commit>/``; made where one is."""
        return self.root / "datasets"

    @property
    def partial(self) -> Path:
        """Downloads under way; renamed into :attr:`models` when they are whole and verified."""
        return self.root / "partial"

    @property
    def locks(self) -> Path:
        """Lock files: a lock that is free means that its owner is gone."""
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        """Log files; never hold a prompt or an answer."""
        return self.root / "logs"

    @property
    def exports(self) -> Path:
        """What the app saves at a person's wish: conversations, pictures of the screen."""
        return self.root / "exports"

    @property
    def snapshots(self) -> Path:
        """What models made of long prompts, for the next time; a cache, made only where the setting asks for it."""
        return self.root / "snapshots"

    @property
    def measured(self) -> Path:
        """What was measured of models (importance matrices, sensitivities): a cache, named after their contents."""
        return self.root / "measured"

    @property
    def native(self) -> Path:
        """What was found of the native libraries on this machine; made where something is (:mod:`localllm.native`)."""
        return self.root / "native"

    @property
    def database(self) -> Path:
        """Conversations and votes, in SQLite."""
        return self.root / "localllm.db"

    @property
    def settings_file(self) -> Path:
        """The person's settings."""
        return self.root / "settings.toml"

    @property
    def keys_file(self) -> Path:
        """Digests and scopes of the API keys."""
        return self.root / "keys.json"

    @property
    def server_file(self) -> Path:
        """Address, process id and token of the running server."""
        return self.root / "server.json"

    def ensure(self) -> "Home":
        """Make the home and its directories with mode 0700; return self.

        Raises:
            SettingsError: The home cannot be made or written.
        """
        try:
            for directory in (self.root, self.models, self.adapters, self.jobs, self.partial, self.locks, self.logs):
                directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
            if self.root.stat().st_mode & 0o077:
                self.root.chmod(DIR_MODE)
        except OSError as error:
            raise SettingsError(
                f"The home directory {self.root} cannot be used: {error.strerror}.",
                "Set LOCALLLM_HOME to a directory that you can write.",
            ) from error
        return self
