"""Which faults are worth another try: those that can pass while nobody looks."""

import errno
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)

from tasks.errors import (
    ArtifactError,
    DedupError,
    NightIncompleteError,
    SourceError,
    StorageError,
    UnreadableImageError,
    WeightsError,
    is_condition_failed,
    is_transient,
    patiently,
)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EBUSY, "SlowDown: please reduce your request rate"),
        TimeoutError("timed out"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        EndpointConnectionError(endpoint_url="http://s3"),
        ConnectTimeoutError(endpoint_url="http://s3"),
        ReadTimeoutError(endpoint_url="http://s3"),
        ClientError({"Error": {"Code": "InternalError"}}, "GetObject"),
        aiohttp.ClientPayloadError("not enough data"),
        aiohttp.ServerDisconnectedError(),
        BrokenProcessPool("a worker died"),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', None)}",
)
def test_faults_that_can_pass(error: Exception) -> None:
    assert is_transient(error) is True


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EXDEV, "Invalid cross-device link"),
        PermissionError(errno.EACCES, "Permission denied"),
        PermissionError(errno.EPERM, "Operation not permitted"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        NoCredentialsError(),
        PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        ProfileNotFound(profile="night"),
        DedupError("explained"),
        SourceError("explained"),
        StorageError("explained"),
        ArtifactError("explained"),
        WeightsError("explained"),
        UnreadableImageError("explained"),
        NightIncompleteError("explained"),
        ValueError("a fault of ours"),
        KeyError("a fault of ours"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', None)}",
)
def test_faults_that_a_person_must_mend(error: BaseException) -> None:
    assert is_transient(error) is False


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), FileNotFoundError("bucket/key")])
def test_faults_that_a_person_must_mend_as_s3fs_raises_them(error: OSError) -> None:
    assert is_transient(error) is False


def test_cause_of_an_explained_fault_does_not_make_it_pass() -> None:
    error = StorageError("cannot write s3://bucket")
    error.__cause__ = TimeoutError("timed out")
    assert is_transient(error) is False


class Call:
    """Raises some errors, one after the other, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.num_calls = 0
        self._errors = list(errors)

    def __call__(self) -> str:
        self.num_calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "result"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept, without doing so."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def fault() -> OSError:
    return OSError(errno.EIO, "Input/output error")


def refusal(code: str, make: Callable[[str], OSError] = OSError) -> OSError:
    """An error as s3fs raises it."""
    error = make("refused")
    error.__cause__ = ClientError({"Error": {"Code": code}}, "PutObject")
    return error


@pytest.mark.parametrize("num_faults", [0, 1, 2, 3])
def test_patience_outlasts_some_faults(num_faults: int, slept: list[float]) -> None:
    call = Call(*[fault()] * num_faults)
    assert patiently(call) == "result"
    assert call.num_calls == num_faults + 1
    assert slept == [0.2, 1.0, 3.0][:num_faults]


def test_patience_ends_with_the_last_fault(slept: list[float]) -> None:
    faults = [fault() for _ in range(4)]
    call = Call(*faults)
    with pytest.raises(OSError, match="Input/output error") as error:
        patiently(call)
    assert error.value is faults[-1]
    assert (call.num_calls, slept) == (4, [0.2, 1.0, 3.0])


@pytest.mark.parametrize("delays", [(), (0.5,), (0.0, 0.0, 0.0, 0.0, 0.0)])
def test_patience_is_as_long_as_asked(delays: tuple[float, ...], slept: list[float]) -> None:
    call = Call(*[fault()] * 10)
    with pytest.raises(OSError, match="Input/output error"):
        patiently(call, delays)
    assert (call.num_calls, slept) == (len(delays) + 1, list(delays))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("bucket/key"),
        PermissionError("Forbidden"),
        StorageError("explained"),
        ValueError("a fault of ours"),
        KeyboardInterrupt(),
        refusal("PreconditionFailed"),
        refusal("ConditionalRequestConflict"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}",
)
def test_patience_is_not_wasted(error: BaseException, slept: list[float]) -> None:
    call = Call(error)
    with pytest.raises(type(error)):
        patiently(call)
    assert (call.num_calls, slept) == (1, [])


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict", "412", "409"])
@pytest.mark.parametrize("make", [OSError, FileExistsError])
def test_refused_condition_is_told_apart(code: str, make: Callable[[str], OSError]) -> None:
    assert is_condition_failed(refusal(code, make)) is True


@pytest.mark.parametrize(
    "error",
    [
        refusal("AccessDenied", PermissionError),
        refusal("NoSuchKey", FileNotFoundError),
        refusal("InternalError"),
        refusal("503"),
        OSError(errno.EINVAL, "Invalid argument"),
        FileExistsError(errno.EEXIST, "File exists"),
        OSError("PreconditionFailed"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.__cause__}",
)
def test_other_faults_are_no_refused_condition(error: OSError) -> None:
    assert is_condition_failed(error) is False


@pytest.mark.parametrize("response", [None, {}, {"Error": {}}, {"Error": {"Code": None}}])
def test_cause_without_an_answer_is_no_refused_condition(response: object) -> None:
    error, cause = OSError("refused"), Exception("cause")
    cause.response = response  # type: ignore[attr-defined]
    error.__cause__ = cause
    assert is_condition_failed(error) is False
