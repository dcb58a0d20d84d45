"""The S3 servers of the tests: they are here for what is tested below."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError, SSLError

from tasks import storage
from tests.rclone_server import run_rclone_server
from tests.s3_server import run_s3_server


@pytest.fixture(autouse=True)
def no_cached_client() -> Iterator[None]:
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()


def make_bucket(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Become a client and make a bucket."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid4().hex[:12]}"
    storage.filesystem("s3://")[0].mkdir(bucket)
    return bucket


def put_if_absent(bucket: str, key: str, content: bytes) -> None:
    fs = storage.filesystem("s3://")[0]
    fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")


def put_if_match(bucket: str, key: str, content: bytes, etag: str) -> None:
    fs = storage.filesystem("s3://")[0]
    fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfMatch=etag)


def test_seaweedfs_heeds_conditions(s3_url: str) -> None:
    bucket = s3_url.removeprefix("s3://")
    put_if_absent(bucket, "claim", b"first")
    with pytest.raises(OSError, match="pre-conditions") as absent:
        put_if_absent(bucket, "claim", b"second")
    with pytest.raises(OSError, match="pre-conditions") as match:
        put_if_match(bucket, "claim", b"third", '"0"')
    for error in (absent.value, match.value):
        assert isinstance(error.__cause__, ClientError)
        assert error.__cause__.response["Error"]["Code"] == "PreconditionFailed"
    assert storage.read_bytes(f"{s3_url}/claim") == b"first"


def test_rclone_ignores_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_rclone_server(tmp_path) as server:
        bucket = make_bucket(server.client, monkeypatch)
        put_if_absent(bucket, "claim", b"first")
        put_if_absent(bucket, "claim", b"second")
        assert storage.read_bytes(f"s3://{bucket}/claim") == b"second"
        put_if_match(bucket, "claim", b"third", '"0"')
        assert storage.read_bytes(f"s3://{bucket}/claim") == b"third"


def test_https_with_a_certificate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_s3_server(tmp_path, tls=True) as server:
        assert server.endpoint.startswith("https://127.0.0.1:")
        url = f"s3://{make_bucket(server.admin, monkeypatch)}/file"
        storage.publish_bytes(url, b"content")
        assert storage.read_bytes(url) == b"content"
        monkeypatch.delenv("AWS_CA_BUNDLE")
        storage._filesystem.cache_clear()
        with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            storage.read_bytes(url)
