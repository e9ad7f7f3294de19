"""Every error that a person can cause, or can do something about.

::

    LocalLLMError                 message, hint, exit code
     ├─ UsageError                the command's words are wrong (exit code 2)
     ├─ SettingsError             settings.toml, environment or flag holds a wrong value (exit code 2)
     ├─ StoreError                the model store could not do what was asked
     │   ├─ ModelNotFoundError    no model of that name is here
     │   ├─ SourceNotFoundError   the source has no such repository, package, file or revision
     │   ├─ AccessDeniedError     the repository is gated or private (401, 403)
     │   ├─ NetworkError          no route, name not resolved, connection cut, server error, offline switch
     │   ├─ ChecksumError         what arrived is not what was promised
     │   └─ DiskFullError         no room left (ENOSPC, quota)
     ├─ DataError                 rows to learn from that cannot be read or used
     ├─ InvalidModelError         a model file is damaged, hostile or of an unknown kind
     ├─ MemoryFitError            the model does not fit in this machine's memory
     ├─ QuantizeError             a model cannot be quantized so, or measured
     ├─ GateError                 an exported model does not predict what was trained
     ├─ ConversationError         a conversation or message that is not there, or a damaged database
     ├─ EngineError               the process that holds a model failed
     │   ├─ EngineCrashError      its process ended too early
     │   │   ├─ EngineDiedError   in the middle of a request
     │   │   └─ EngineLoadError   while it loaded the model; or it could not load it
     │   └─ EngineBusyError       its queue is full
     ├─ RequestError              a request that the engine refuses (unsupported, malformed)
     │   └─ ContextLengthError    prompt and answer do not fit in the context
     └─ ServerError               the local server cannot be started or reached

A person's mistake shows ``message`` and ``hint``. A bug is any other exception and shows a traceback.
"""


class LocalLLMError(Exception):
    """Base of every error shown to a person.

    Attributes:
        message: What happened, in one sentence, naming the thing it happened to.
        hint: What to do about it; empty when there is nothing to add.
        exit_code: What the command ends with (1 failed, 2 wrong usage).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses with more arguments override this: the default would pass args=(message,) only.
        return (type(self), (self.message, self.hint))


class UsageError(LocalLLMError):
    """The command's words are wrong."""

    exit_code = 2


class SettingsError(LocalLLMError):
    """A setting has a wrong name or value."""

    exit_code = 2


class StoreError(LocalLLMError):
    """The model store could not do what was asked."""


class ModelNotFoundError(StoreError):
    """No model of that name is in the store."""


class SourceNotFoundError(StoreError):
    """The source has no such repository, package, file or revision."""


class AccessDeniedError(StoreError):
    """The repository is gated or private, or the token was refused."""


class NetworkError(StoreError):
    """The network is off, unreachable, or broke while something was fetched."""


class ChecksumError(StoreError):
    """What arrived is not what was promised; it has been removed."""


class DiskFullError(StoreError):
    """There is no room left on the disk; nothing half-written was kept."""


class DataError(LocalLLMError):
    """Rows to learn from cannot be read, or cannot be used."""


class InvalidModelError(LocalLLMError):
    """A model file is damaged, hostile, or of a kind this program does not know."""


class MemoryFitError(LocalLLMError):
    """The model needs more memory than this machine has."""


class QuantizeError(LocalLLMError):
    """A model cannot be quantized as asked, its importance matrix not be computed, or its quality not be measured."""


class GateError(LocalLLMError):
    """An exported model does not predict what the one that was trained predicts."""


class ConversationError(LocalLLMError):
    """A conversation or message is not there, or the database cannot be read."""


class EngineError(LocalLLMError):
    """The process that holds a model failed."""


class EngineCrashError(EngineError):
    """The engine's process ended before its work was done.

    Attributes:
        crash: Name of the signal of a crash of its own (``SIGILL``); empty where it ended otherwise, or was killed.
    """

    def __init__(self, message: str, hint: str = "", crash: str = "") -> None:
        super().__init__(message, hint)
        self.crash = crash

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint, self.crash))


class EngineDiedError(EngineCrashError):
    """The engine's process ended in the middle of a request."""


class EngineLoadError(EngineCrashError):
    """The engine's process could not load the model."""


class EngineBusyError(EngineError):
    """The engine's queue is full."""


class RequestError(LocalLLMError):
    """The engine refuses a request: unsupported, malformed, or impossible.

    Attributes:
        param: The request's field that is at fault, as the API names it; empty when it is none in particular.
    """

    def __init__(self, message: str, hint: str = "", param: str = "") -> None:
        super().__init__(message, hint)
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint, self.param))


class ContextLengthError(RequestError):
    """Prompt and answer do not fit in the context.

    Attributes:
        n_prompt: Tokens in the prompt.
        n_ctx: Tokens that the context holds.
    """

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        super().__init__(
            f"The prompt has {n_prompt} tokens, but this model's context holds {n_ctx}.",
            "Shorten the prompt, start a new conversation, or load the model with a larger --ctx.",
            "messages",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.n_prompt, self.n_ctx))


class ServerError(LocalLLMError):
    """The local server cannot be started or reached."""


class JobError(LocalLLMError):
    """A job is not there, cannot be read, or cannot do what was asked."""


class JobFailedError(JobError):
    """A job that somebody followed has failed.

    Attributes:
        exit_code: As the job's own error has it.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint, self.exit_code))


class JobCancelledError(LocalLLMError):
    """A person has cancelled the job."""

    exit_code = 130

    def __init__(self, message: str = "The job was cancelled.", hint: str = "") -> None:
        super().__init__(message, hint)
