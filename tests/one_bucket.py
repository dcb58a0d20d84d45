"""One bucket and one client for many tests: to make them takes longer than most tests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

import pytest

from tasks import storage
from tests.s3_server import S3Server


@contextmanager
def as_client(environment: Mapping[str, str]) -> Iterator[None]:
    """Go on as another client of an S3 server."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage._filesystem.cache_clear()
        try:
            yield
        finally:
            storage._filesystem.cache_clear()


def make_bucket() -> str:
    """Make a bucket as the present client; gives its URL."""
    bucket = f"test-{uuid4().hex[:12]}"
    storage.filesystem("s3://")[0].mkdir(bucket)
    return f"s3://{bucket}"


@contextmanager
def one_bucket(server: S3Server) -> Iterator[str]:
    """Go on as a client that may do everything, with a bucket of its own."""
    with as_client(server.admin):
        yield make_bucket()
