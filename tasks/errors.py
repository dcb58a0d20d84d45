"""The errors a user can cause or meet, and which faults are worth another try."""

import errno
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import TypeVar

Result = TypeVar("Result")


class DedupError(Exception):
    """Base of all errors that are explained to the user in one message, without a stack trace."""


class SourceError(DedupError):
    """The source cannot be listed."""


class StorageError(DedupError):
    """A location cannot be read or written, and trying again will not help."""


class ArtifactError(DedupError):
    """An artifact on storage is not what the stage that reads it expects."""


class MissingArtifactError(ArtifactError):
    """There is no artifact where one is expected."""


class WeightsError(DedupError):
    """The VGG16 weights are missing or are not the ImageNet weights."""


class EngineError(DedupError):
    """The engine is not installed, or this machine does not compute in the number format."""


class UnreadableImageError(DedupError):
    """The bytes of one image cannot be decoded; becomes an error row, never a failed run."""


class NightIncompleteError(DedupError):
    """Some shards failed for good, so no manifest is written."""


class ChangedSettingsError(DedupError):
    """With other settings than before, earlier work would be worth nothing; nobody said so."""


class GuardError(DedupError):
    """A guard refuses to act; the message names the setting that would let it pass."""


class LockHeldError(DedupError):
    """Somebody else is acting on the source."""


class LockLostError(DedupError):
    """The lock could not be kept, so nothing more may be done under it."""


class ActionsFailedError(DedupError):
    """Acting had to stop before its end; the journal knows how far it came."""


class ApprovalError(DedupError):
    """The run has not been approved, or was rejected."""


class ReviewError(DedupError):
    """A review is of another manifest, says what none can say, or contradicts itself."""


class ClusterError(DedupError):
    """The package of a task runner is not installed, or its cluster does not answer."""


class ServerError(DedupError):
    """No Prefect server answers, or none can be started."""


_PERMANENT_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EXDEV,
        errno.EPERM,
        errno.EROFS,
    }
)
_CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_PERMANENT_BOTOCORE_ERRORS = frozenset(
    {
        "NoCredentialsError",
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSLError",
    }
)


def is_transient(error: BaseException) -> bool:
    """Tell whether a fault can pass by itself: the network, throttling, a dead worker.

    Args:
        error: What a task raised.

    Returns:
        False for everything a person must mend (settings, permissions, a full disk, a missing
        folder, a programming error), True for other input/output faults.
    """
    # s3fs raises some of these without an errno.
    if isinstance(error, DedupError | PermissionError | FileNotFoundError | FileExistsError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT_ERRNOS
    # botocore's, aiohttp's and the process pool's own errors do not derive from OSError.
    names = {base.__name__ for base in type(error).__mro__}
    modules = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    if names & _PERMANENT_BOTOCORE_ERRORS:
        return False
    return is_dead_worker(error) or bool(modules & {"botocore", "aiobotocore", "aiohttp"})


def is_dead_worker(error: BaseException) -> bool:
    """Tell whether a process of a pool died, which ends every task of the pool."""
    return isinstance(error, BrokenExecutor)


def patiently(
    call: Callable[[], Result], delays_seconds: Sequence[float] = (0.2, 1.0, 3.0)
) -> Result:
    """Call again after faults that can pass by themselves.

    Args:
        call: What to do; must not mind being done twice.
        delays_seconds: How long to wait before each further try.
    """
    for delay in delays_seconds:
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or is_condition_failed(error):
                raise
            time.sleep(delay)
    return call()


def is_condition_failed(error: BaseException) -> bool:
    """Tell whether S3 refused a request because its condition did not hold."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("Error", {}).get("Code") in _CONDITION_FAILED
