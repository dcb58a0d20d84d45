"""Which faults are worth another try: those that can pass while nobody looks."""

import errno
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
    is_transient,
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
