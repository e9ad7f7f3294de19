"""What the hub's errors mean to a person."""

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from localllm.errors import AccessDeniedError, NetworkError, SourceNotFoundError, StoreError
from localllm.sanitize import one_line

# Either does it: huggingface_hub obeys both.
OFFLINE_SWITCH = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
_TRY_AGAIN = "What has arrived is kept: run the same command again to go on."


@contextmanager
def hub_errors(repository: str, revision: str) -> Iterator[None]:
    """Turn the errors of ``huggingface_hub`` and of the network below it into ours.

    Raises:
        AccessDeniedError: The repository is gated, disabled or private, or the token was refused.
        SourceNotFoundError: No such repository, revision or file.
        NetworkError: No network, the offline switch, a broken connection, a server's error.
        StoreError: Any other refusal.
    """
    import httpx2  # deferred with huggingface_hub: 0.3 s
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise AccessDeniedError(
            f"{repository} is gated: its owner wants you to accept its terms first.",
            "Accept them on the repository's page, then set HF_TOKEN or run `hf auth login`.",
        ) from error
    except DisabledRepoError as error:
        raise AccessDeniedError(f"The hub has disabled {repository}.", "Look for another repository.") from error
    except RevisionNotFoundError as error:
        raise SourceNotFoundError(
            f"{repository} has no revision {revision!r}.", "Leave @REVISION out for main."
        ) from error
    except EntryNotFoundError as error:
        raise SourceNotFoundError(
            f"A file of {repository} is gone from the hub.", "Run the same command again."
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceNotFoundError(
            f"The hub has no repository {repository}, or it is private.",
            "Check its spelling; for a private one set HF_TOKEN or run `hf auth login`.",
        ) from error
    except HfHubHTTPError as error:
        raise _http_error(error, repository) from error
    except HFValidationError as error:
        raise SourceNotFoundError(f"{repository} cannot be a repository: {one_line(str(error), 120)}") from error
    except OfflineModeIsEnabled as error:
        raise NetworkError(
            f"The hub is switched off ({OFFLINE_SWITCH}).", f"Unset {OFFLINE_SWITCH} to fetch models."
        ) from error
    except (httpx2.ConnectError, httpx2.ProxyError) as error:
        certificate = isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE" in str(error)
        hint = (
            "Its certificate was refused: check SSL_CERT_FILE and the proxy." if certificate else "Check the network."
        )
        raise NetworkError(f"The hub cannot be reached to fetch {repository}.", hint) from error
    except (httpx2.TransportError, ConnectionError, TimeoutError) as error:
        raise NetworkError(f"The connection broke while {repository} was being fetched.", _TRY_AGAIN) from error
    except OSError as error:
        # The hub's own check of the size is a bare OSError without a number; a real one (a full disk) has it.
        if error.errno is None:
            raise NetworkError(f"A file of {repository} arrived incomplete.", _TRY_AGAIN) from error
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
            raise NetworkError(f"The hub cannot be reached to fetch {repository}.", "Check the network.") from error
        raise


def _http_error(error: object, repository: str) -> StoreError:
    status: int = error.response.status_code  # type: ignore[attr-defined]
    if status in (401, 403):
        return AccessDeniedError(
            f"The hub refuses access to {repository} ({status}).", "Check HF_TOKEN, or run `hf auth login` again."
        )
    if status == 404:
        return SourceNotFoundError(f"The hub has nothing at {repository}.", "Check its spelling.")
    if status == 429:
        return NetworkError(
            "The hub asks to slow down (429).", "Wait some minutes, or set HF_TOKEN for a higher limit."
        )
    if status >= 500:
        return NetworkError(f"The hub has a problem of its own ({status}).", _TRY_AGAIN)
    return StoreError(f"The hub refused the request for {repository} ({status}).", "Run with another revision or file.")
