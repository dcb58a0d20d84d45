"""The faulty proxy: it breaks what it was asked to break, and changes nothing else."""

import http.client
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
import pytest
from botocore.exceptions import ClientError

from tasks import storage
from tests.faulty_proxy import ALL_KINDS, STALL_SECONDS, FaultyProxy, run_faulty_proxy
from tests.s3_server import S3Server

ODD_NAMES = [
    " leading",
    "#1",
    "%41",
    "*",
    "50%",
    "a b",
    "a%20b",
    "a&b=c",
    "a+b",
    "a::b",
    "new\nline",
    "q?x=1",
    "{~}[1]",
    "ü/日本",
]


@dataclass(frozen=True)
class Store:
    """The S3 server behind a proxy."""

    proxy: FaultyProxy
    bucket: str

    def target(self, key: str, method: str = "get_object") -> str:
        """A signed path and query, for a plain HTTP client."""
        fs = storage.filesystem("s3://")[0]
        url = urlsplit(fs.url(f"{self.bucket}/{key}", client_method=method))
        return f"{url.path}?{url.query}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.proxy.endpoint).netloc, timeout=20)

    def ask(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask once, on a new connection."""
        with closing(self.connect()) as connection:
            connection.request(method, target, body)
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def open_store(server: S3Server, url: str, **options: Any) -> Iterator[Store]:
    """Put a proxy, by default without faults, before the store and become its client."""
    options = {"failure_rate": 0, "seed": 7} | options
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        run_faulty_proxy(server.endpoint, **options) as proxy,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage._filesystem.cache_clear()
        yield Store(proxy, url.removeprefix("s3://"))
    storage._filesystem.cache_clear()


def test_without_faults_clients_see_the_store_itself(s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url) as store:
        fs = storage.filesystem("s3://")[0]
        for name in ODD_NAMES:
            path = f"{store.bucket}/{name}"
            storage.publish_bytes(f"s3://{path}", name.encode())
            assert storage.read_bytes(f"s3://{path}") == name.encode()
            assert fs.info(path)["size"] == len(name.encode())
            fs.cp_file(path, f"{store.bucket}/copies/{name}")
        through_proxy = storage.list_files(s3_url)
        assert store.proxy.num_requests > 4 * len(ODD_NAMES)
    assert storage.list_files(s3_url) == through_proxy
    assert len(through_proxy) == 2 * len(ODD_NAMES)
    with open_store(s3_server, s3_url) as store:
        fs = storage.filesystem("s3://")[0]
        for file in through_proxy:
            fs.rm_file(file.url)
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(through_proxy[0].url)
        assert store.proxy.num_faults == {}
    assert storage.list_files(s3_url) == []


def test_large_uploads_in_parts(s3_server: S3Server, s3_url: str) -> None:
    content = os.urandom(12_000_000)
    with open_store(s3_server, s3_url) as store:
        fs = storage.filesystem("s3://")[0]
        fs.pipe_file(f"{store.bucket}/s3fs", content, chunksize=6_000_000)
        # Its uploads are chunked, with a checksum after the last chunk.
        arrow = pyarrow.fs.S3FileSystem(
            endpoint_override=store.proxy.endpoint,
            access_key=s3_server.admin["AWS_ACCESS_KEY_ID"],
            secret_key=s3_server.admin["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
        )
        with arrow.open_output_stream(f"{store.bucket}/arrow") as sink:
            sink.write(content)
        with arrow.open_input_file(f"{store.bucket}/arrow") as file:
            assert file.read() == content
        assert storage.read_bytes(f"{s3_url}/s3fs") == content


def test_chunked_upload(s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url) as store, closing(store.connect()) as connection:
        chunks = iter([b"some", b"thing"])
        headers = {"Transfer-Encoding": "chunked"}
        target = store.target("key", "put_object")
        connection.request("PUT", target, chunks, headers, encode_chunked=True)
        assert connection.getresponse().status == 200
        assert store.ask("GET", store.target("key")) == (200, b"something")


def test_many_requests_at_once(s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url) as store:
        fs = storage.filesystem("s3://")[0]
        contents = {f"{store.bucket}/{number}": b"%d" % number for number in range(200)}
        fs.pipe(contents, batch_size=100)
        assert fs.cat(list(contents), batch_size=100) == contents


def test_connection_is_kept_also_after_faults(s3_server: S3Server, s3_url: str) -> None:
    put, get, delete = "put_object", "get_object", "delete_object"
    content = b"content" * 1000
    script = [
        ("PUT", put, 1, 500),
        ("PUT", put, 0, 200),
        ("GET", get, 0, 200),
        ("HEAD", "head_object", 1, 500),
        ("HEAD", "head_object", 0, 200),
        ("GET", get, 1, 500),
        ("GET", get, 0, 304),
        ("DELETE", delete, 0, 204),
        ("GET", get, 0, 404),
    ]
    with (
        open_store(s3_server, s3_url, kinds=["500"]) as store,
        closing(store.connect()) as connection,
    ):
        connection.connect()
        opened = connection.sock
        for method, operation, failure_rate, status in script:
            store.proxy.failure_rate = failure_rate
            connection.request(
                method,
                store.target("key", operation),
                content if method == "PUT" else None,
                {"If-None-Match": "*"} if status == 304 else {},
            )
            answer = connection.getresponse()
            assert answer.status == status
            body = answer.read()
            assert (body == content) == (method == "GET" and status == 200)
            assert connection.sock is opened
        assert store.proxy.num_requests == len(script)
        assert store.proxy.num_faults == {"500": 3}


@pytest.mark.parametrize(("kind", "code"), [("500", b"InternalError"), ("503", b"SlowDown")])
def test_error_answer(kind: str, code: bytes, s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url, kinds=[kind]) as store:
        target = store.target("key", "put_object")
        store.proxy.failure_rate = 1
        status, body = store.ask("PUT", target, b"content")
        assert status == int(kind)
        assert b"<Code>%b</Code>" % code in body
        store.proxy.failure_rate = 0
        assert store.ask("GET", store.target("key"))[0] == 404
        assert store.proxy.num_faults == {kind: 1}


@pytest.mark.parametrize(("kind", "status"), [("reset", 404), ("reset_after", 200)])
def test_reset(kind: str, status: int, s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url, kinds=[kind], failure_rate=1) as store:
        with pytest.raises(ConnectionResetError) as error:
            store.ask("PUT", store.target("key", "put_object"), b"content")
        assert error.type is ConnectionResetError  # http.client derives others from it
        store.proxy.failure_rate = 0
        assert store.ask("GET", store.target("key"))[0] == status
        assert store.proxy.num_faults == {kind: 1}


def test_truncated_answer(s3_server: S3Server, s3_url: str) -> None:
    content = os.urandom(1_000_000)
    with open_store(s3_server, s3_url, kinds=["truncated"], failure_rate=1) as store:
        # Only the answers to GET can be cut short.
        assert store.ask("PUT", store.target("key", "put_object"), content)[0] == 200
        assert store.ask("PUT", store.target("empty", "put_object"), b"")[0] == 200
        assert store.ask("GET", store.target("empty")) == (200, b"")
        assert store.proxy.num_faults == {}
        with pytest.raises(http.client.IncompleteRead) as error:
            store.ask("GET", store.target("key"))
        assert error.value.partial == content[:500_000]
        assert error.value.expected == 500_000
        assert store.proxy.num_faults == {"truncated": 1}


def test_stalled_answer(s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url, kinds=["stall"]) as store:
        assert store.ask("PUT", store.target("key", "put_object"), b"content")[0] == 200
        store.proxy.failure_rate = 1
        start = time.monotonic()
        assert store.ask("GET", store.target("key")) == (200, b"content")
        assert time.monotonic() - start >= STALL_SECONDS
        assert store.proxy.num_faults == {"stall": 1}


def test_client_that_tries_again_meets_its_own_write(s3_server: S3Server, s3_url: str) -> None:
    """What `reset_after` is for: the write was refused, and it was done."""
    turn = itertools.count()
    options = {"kinds": ["reset_after"], "failure_rate": 1, "spare": lambda *_: next(turn) > 0}
    with open_store(s3_server, s3_url, **options) as store:
        fs = storage.filesystem("s3://")[0]
        request = {"Bucket": store.bucket, "Key": "claim", "Body": b"mine", "IfNoneMatch": "*"}
        with pytest.raises(OSError, match="pre-conditions") as error:
            fs.call_s3("put_object", **request)
        assert isinstance(error.value.__cause__, ClientError)
        assert storage.read_bytes(f"{s3_url}/claim") == b"mine"


def test_same_seed_same_faults(s3_server: S3Server, s3_url: str) -> None:
    def statuses(seed: int) -> list[int]:
        options = {"kinds": ["500", "503"], "failure_rate": 0.5, "seed": seed}
        with open_store(s3_server, s3_url, **options) as store:
            found = [store.ask("GET", store.target("key"))[0] for _ in range(30)]
            assert store.proxy.num_faults == {"500": found.count(500), "503": found.count(503)}
            return found

    first = statuses(1)
    assert set(first) == {404, 500, 503}
    assert first == statuses(1) != statuses(2)


def test_spared_requests_never_fail(s3_server: S3Server, s3_url: str) -> None:
    def spare(method: str, target: str) -> bool:
        return method == "PUT" or "/spared?" in target

    with open_store(s3_server, s3_url, kinds=["503"], failure_rate=1, spare=spare) as store:
        for key in ("spared", "other"):
            assert store.ask("PUT", store.target(key, "put_object"), b"content")[0] == 200
        assert store.ask("GET", store.target("spared"))[0] == 200
        assert store.ask("GET", store.target("other"))[0] == 503
        assert store.proxy.num_requests == 4


def test_clients_that_try_again_get_through(s3_server: S3Server, s3_url: str) -> None:
    kinds = [kind for kind in ALL_KINDS if kind != "stall"]
    with open_store(s3_server, s3_url, kinds=kinds, failure_rate=0.2) as store:
        for number in range(10):
            storage.publish_bytes(f"{s3_url}/{number}", b"%d" % number)
            assert storage.read_bytes(f"{s3_url}/{number}") == b"%d" % number
        assert store.proxy.num_faults.total() > 0


def test_dead_store_ends_the_connection() -> None:
    with (
        run_faulty_proxy("http://127.0.0.1:1", failure_rate=0, seed=0) as proxy,
        closing(Store(proxy, "").connect()) as connection,
    ):
        connection.request("GET", "/")
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()


def test_end_closes_connections(s3_server: S3Server, s3_url: str) -> None:
    with open_store(s3_server, s3_url) as store:
        connection = store.connect()
        connection.request("GET", "/")
        connection.getresponse().read()
    with closing(connection):
        assert connection.sock.recv(1) == b""
    with closing(store.connect()) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect()


def test_unknown_fault_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="501"),
        run_faulty_proxy("http://127.0.0.1:1", failure_rate=0, seed=0, kinds=["501"]),
    ):
        pass
