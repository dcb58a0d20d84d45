"""Images on S3: conditions, versions, lost answers, and stores that keep fewer promises."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from tasks import storage
from tasks.store_s3 import S3Store
from tasks.stores import ChangedError, FileState, NotAFileError, OccupiedError, store_of
from tests.faulty_proxy import run_faulty_proxy
from tests.one_bucket import as_client, make_bucket, one_bucket
from tests.rclone_server import RcloneServer, run_rclone_server
from tests.s3_server import S3Server

ODD_KEYS = [
    "a?versionId=1",
    "a?versionId=null&x",
    "a#b",
    "a%20b",
    "a%2Fb",
    "a b",
    "a+b",
    "a::b",
    "{a}",
    "~a",
    "new\nline",
    "quotes\"'`",
    "<&>",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.a",
    "ü/日本/\N{FACE WITH TEARS OF JOY}",
]


@pytest.fixture
def store() -> S3Store:
    return S3Store("s3")


def put(store: S3Store, url: str, content: bytes = b"content") -> FileState:
    state = store.create(url, content)
    assert state is not None
    return state


def contents(store: S3Store, url: str) -> dict[str, bytes]:
    """Content of every object, by its key after the folder."""
    found = {}
    for file in storage.list_files(url):
        stored = store.get(file.url)
        assert stored is not None
        found[file.relative_path] = stored.content
    return found


def call(operation: str, url: str, **arguments: Any) -> Any:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    keys = {"Key": key} if key else {}
    return storage.filesystem("s3://")[0].call_s3(operation, Bucket=bucket, **keys, **arguments)


def overwrite(url: str, content: bytes) -> None:
    """Write as anybody would who knows nothing of us."""
    call("put_object", url, Body=content)


def after(
    monkeypatch: pytest.MonkeyPatch, store: S3Store, method: str, act: Callable[[], object]
) -> None:
    """Let something happen right after the next call of a method."""
    original = getattr(store, method)
    first = iter([act])

    def call_and_act(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for happens in first:
            happens()
        return result

    monkeypatch.setattr(store, method, call_and_act)


@contextmanager
def unreliable(
    server: S3Server, kind: str = "reset_after"
) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Go on as a client of a store that can be told to spoil its next answer."""
    to_spoil: list[str] = []

    def spare(method: str, target: str) -> bool:
        if to_spoil != [method]:
            return True
        to_spoil.clear()
        return False

    with (
        run_faulty_proxy(
            server.endpoint, failure_rate=1, seed=7, kinds=[kind], spare=spare
        ) as proxy,
        as_client({"AWS_ENDPOINT_URL": proxy.endpoint}),
    ):

        @contextmanager
        def without_answer(method: str) -> Iterator[None]:
            before = proxy.num_faults[kind]
            to_spoil[:] = [method]
            yield
            assert proxy.num_faults[kind] == before + 1

        yield without_answer


@pytest.fixture(scope="module")
def bucket_url(s3_server: S3Server) -> Iterator[str]:
    with one_bucket(s3_server) as url:
        yield url


@pytest.fixture
def s3_url(bucket_url: str) -> str:
    """A folder of its own for every test."""
    return f"{bucket_url}/{uuid4().hex}"


@pytest.fixture(scope="module")
def versioned_bucket_url(bucket_url: str) -> str:
    url = make_bucket()
    call("put_bucket_versioning", url, VersioningConfiguration={"Status": "Enabled"})
    return url


@pytest.fixture
def versioned_url(versioned_bucket_url: str) -> str:
    return f"{versioned_bucket_url}/{uuid4().hex}"


@pytest.fixture(scope="module")
def careless_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    with run_rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def careless_url(careless_server: RcloneServer) -> Iterator[str]:
    """A bucket on a store that ignores conditions."""
    with as_client(careless_server.client):
        yield make_bucket()


def forget(monkeypatch: pytest.MonkeyPatch, operation: str, condition: str) -> S3Store:
    """A store that heeds all conditions but one."""
    store = S3Store("s3")
    ask = store._call

    def ask_without(asked: str, url: str, **arguments: Any) -> Any:
        if asked == operation:
            arguments.pop(condition, None)
        return ask(asked, url, **arguments)

    monkeypatch.setattr(store, "_call", ask_without)
    return store


@pytest.fixture
def lax_store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store that heeds conditions of uploads and copies, but not of deletions."""
    return forget(monkeypatch, "delete_object", "IfMatch")


class TestObjects:
    def test_are_told_apart_by_their_md5(self, store: S3Store, s3_url: str) -> None:
        state = put(store, f"{s3_url}/night/a.jpg")
        assert state.etag == hashlib.md5(b"content").hexdigest()
        assert f"s3://{state.identity}" == f"{s3_url}/night/a.jpg"

    def test_of_a_folder_are_no_images(self, store: S3Store, s3_url: str) -> None:
        call("put_object", f"{s3_url}/night/", Body=b"")
        with pytest.raises(NotAFileError, match="a folder"):
            store.stat(f"{s3_url}/night/")

    def test_have_the_type_that_their_name_says(self, store: S3Store, s3_url: str) -> None:
        for name, kind in (
            ("a.jpg", "image/jpeg"),
            ("a.PNG", "image/png"),
            ("a.jpg?x", "application/octet-stream"),
            ("lock", "application/octet-stream"),
        ):
            put(store, f"{s3_url}/{name}")
            assert call("head_object", f"{s3_url}/{name}")["ContentType"] == kind

    def test_keep_what_is_said_of_them_when_they_are_moved(
        self, store: S3Store, s3_url: str
    ) -> None:
        call(
            "put_object",
            f"{s3_url}/a",
            Body=b"image",
            ContentType="image/x-camera",
            Metadata={"camera": "north"},
        )
        state = store.stat(f"{s3_url}/a")
        assert state is not None
        moved = store.move(f"{s3_url}/a", f"{s3_url}/aside/a", state)
        store.put_back(f"{s3_url}/aside/a", f"{s3_url}/a", moved)
        head = call("head_object", f"{s3_url}/a")
        assert (head["ContentType"], head["Metadata"]) == ("image/x-camera", {"camera": "north"})

    def test_are_the_same_by_the_other_name_of_the_protocol(self, s3_url: str) -> None:
        url = s3_url.replace("s3://", "s3a://")
        store = store_of(url)
        state = store.create(f"{url}/a.jpg", b"image")
        assert state is not None
        moved = store.move(f"{url}/a.jpg", f"{url}/b.jpg", state)
        assert store.read(f"{url}/b.jpg", moved) == b"image"
        assert store.shares_moves_with(url, "s3://another") is True

    def test_of_several_parts_can_be_moved_and_put_back(self, store: S3Store, s3_url: str) -> None:
        upload = call("create_multipart_upload", f"{s3_url}/a.jpg")["UploadId"]
        parts = [b"x" * 5 * 1024 * 1024, b"end"]
        answers = [
            call("upload_part", f"{s3_url}/a.jpg", UploadId=upload, PartNumber=number, Body=part)
            for number, part in enumerate(parts, 1)
        ]
        tags = [{"ETag": answer["ETag"], "PartNumber": n} for n, answer in enumerate(answers, 1)]
        call(
            "complete_multipart_upload",
            f"{s3_url}/a.jpg",
            UploadId=upload,
            MultipartUpload={"Parts": tags},
        )
        state = store.stat(f"{s3_url}/a.jpg")
        assert state is not None
        assert state.etag.endswith("-2")
        moved = store.move(f"{s3_url}/a.jpg", f"{s3_url}/aside/a.jpg", state)
        assert moved == replace(
            store.stat(f"{s3_url}/aside/a.jpg") or moved,
            changed=moved.changed,
            modified_at=moved.modified_at,
        )
        store.put_back(f"{s3_url}/aside/a.jpg", f"{s3_url}/a.jpg", moved)
        assert contents(store, s3_url) == {"a.jpg": b"".join(parts)}


class TestOddKeys:
    def test_are_sent_as_they_are(self, store: S3Store, s3_url: str) -> None:
        for key in ODD_KEYS:
            state = put(store, f"{s3_url}/source/{key}", key.encode())
            assert store.create(f"{s3_url}/source/{key}", b"another") is None
            state = store.replace(f"{s3_url}/source/{key}", key.encode() * 2, state) or state
            assert store.stat(f"{s3_url}/source/{key}") == state
            assert store.read(f"{s3_url}/source/{key}", state) == key.encode() * 2
        expected = {key: key.encode() * 2 for key in sorted(ODD_KEYS)}
        assert contents(store, f"{s3_url}/source") == expected

    def test_can_be_moved_put_back_copied_and_removed(self, store: S3Store, s3_url: str) -> None:
        for key in ODD_KEYS:
            state = put(store, f"{s3_url}/source/{key}", key.encode())
            moved = store.move(f"{s3_url}/source/{key}", f"{s3_url}/aside/{key}", state)
            store.put_back(f"{s3_url}/aside/{key}", f"{s3_url}/source/{key}", moved)
            store.copy(f"{s3_url}/source/{key}", f"{s3_url}/copy/{key}", state)
            store.remove(f"{s3_url}/source/{key}", state)
        expected = {f"copy/{key}": key.encode() for key in sorted(ODD_KEYS)}
        assert contents(store, s3_url) == expected

    def test_never_mean_another_object(self, store: S3Store, s3_url: str) -> None:
        for other in ("a", "a b"):
            put(store, f"{s3_url}/{other}")
        for key in ("a?versionId=1", "a#b", "a%20b"):
            assert store.stat(f"{s3_url}/{key}") is None
            assert store.get(f"{s3_url}/{key}") is None
            state = put(store, f"{s3_url}/{key}")
            store.remove(f"{s3_url}/{key}", state)
            assert contents(store, s3_url) == {"a": b"content", "a b": b"content"}

    def test_of_an_old_version_does_not_read_it(self, store: S3Store, versioned_url: str) -> None:
        version = call("put_object", f"{versioned_url}/a", Body=b"old")["VersionId"]
        overwrite(f"{versioned_url}/a", b"new")
        assert store.stat(f"{versioned_url}/a?versionId={version}") is None
        assert store.get(f"{versioned_url}/a?versionId={version}") is None


class TestConditions:
    def test_spare_an_object_that_changes_while_it_is_moved(
        self, store: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(store, f"{s3_url}/a.jpg", b"image")
        after(monkeypatch, store, "_copy", lambda: overwrite(f"{s3_url}/a.jpg", b"newer"))
        with pytest.raises(ChangedError):
            store.move(f"{s3_url}/a.jpg", f"{s3_url}/aside/a.jpg", state)
        assert contents(store, s3_url) == {"a.jpg": b"newer"}

    def test_spare_an_object_that_changes_right_before_it_is_removed(
        self, store: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(store, f"{s3_url}/a.jpg", b"image")
        after(monkeypatch, store, "stat", lambda: overwrite(f"{s3_url}/a.jpg", b"newer"))
        with pytest.raises(ChangedError):
            store.remove(f"{s3_url}/a.jpg", state)
        assert contents(store, s3_url) == {"a.jpg": b"newer"}

    @pytest.mark.parametrize("method", ["put_back", "copy"])
    def test_spare_an_object_that_appears_at_the_last_moment(
        self, store: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        state = put(store, f"{s3_url}/aside/a.jpg", b"image")
        after(monkeypatch, store, "stat", lambda: overwrite(f"{s3_url}/a.jpg", b"newer"))
        with pytest.raises(OccupiedError):
            getattr(store, method)(f"{s3_url}/aside/a.jpg", f"{s3_url}/a.jpg", state)
        assert contents(store, s3_url) == {"a.jpg": b"newer", "aside/a.jpg": b"image"}

    def test_are_met_by_an_object_that_is_gone_already(self, store: S3Store, s3_url: str) -> None:
        state = put(store, f"{s3_url}/a.jpg")
        store.remove(f"{s3_url}/a.jpg", state)
        store.remove(f"{s3_url}/a.jpg", state)
        assert store.discard(f"{s3_url}/a.jpg", state) is True

    def test_make_nobody_the_owner_of_what_another_wrote(
        self, store: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(store, f"{s3_url}/lock", b"ours")
        after(monkeypatch, store, "_call", lambda: overwrite(f"{s3_url}/lock", b"theirs"))
        following = store.replace(f"{s3_url}/lock", b"renewed", state)
        assert following is None or following.etag == hashlib.md5(b"renewed").hexdigest()
        assert contents(store, s3_url) == {"lock": b"theirs"}

    def test_of_an_object_that_is_gone_may_be_answered_with_not_found(
        self, store: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As AWS does; the server of the tests says that the condition failed.
        state = put(store, f"{s3_url}/lock")
        store.discard(f"{s3_url}/lock", state)

        def answer(operation: str, url: str, **arguments: Any) -> Any:
            raise FileNotFoundError("The specified key does not exist.")

        monkeypatch.setattr(store, "_call", answer)
        assert store.replace(f"{s3_url}/lock", b"renewed", state) is None


class TestVersionedBucket:
    def test_image_is_moved_and_put_back(self, store: S3Store, versioned_url: str) -> None:
        state = put(store, f"{versioned_url}/a.jpg", b"image")
        moved = store.move(f"{versioned_url}/a.jpg", f"{versioned_url}/aside/a.jpg", state)
        assert store.stat(f"{versioned_url}/a.jpg") is None
        assert store.get(f"{versioned_url}/a.jpg") is None
        assert contents(store, versioned_url) == {"aside/a.jpg": b"image"}
        store.put_back(f"{versioned_url}/aside/a.jpg", f"{versioned_url}/a.jpg", moved)
        assert contents(store, versioned_url) == {"a.jpg": b"image"}

    def test_image_is_moved_and_put_back_again_and_again(
        self, store: S3Store, versioned_url: str
    ) -> None:
        state = put(store, f"{versioned_url}/a.jpg", b"image")
        for _ in range(3):
            state = store.move(f"{versioned_url}/a.jpg", f"{versioned_url}/aside/a.jpg", state)
            store.put_back(f"{versioned_url}/aside/a.jpg", f"{versioned_url}/a.jpg", state)
        assert contents(store, versioned_url) == {"a.jpg": b"image"}

    def test_removed_image_keeps_its_versions(self, store: S3Store, versioned_url: str) -> None:
        state = put(store, f"{versioned_url}/a.jpg", b"image")
        store.remove(f"{versioned_url}/a.jpg", state)
        assert store.stat(f"{versioned_url}/a.jpg") is None
        bucket_url, _, prefix = versioned_url.rpartition("/")
        found = call("list_object_versions", bucket_url, Prefix=prefix)
        assert [version["Key"] for version in found["Versions"]] == [f"{prefix}/a.jpg"]

    def test_only_the_newest_version_counts(self, store: S3Store, versioned_url: str) -> None:
        state = put(store, f"{versioned_url}/a.jpg", b"old")
        overwrite(f"{versioned_url}/a.jpg", b"new")
        with pytest.raises(ChangedError):
            store.read(f"{versioned_url}/a.jpg", state)
        with pytest.raises(ChangedError):
            store.remove(f"{versioned_url}/a.jpg", state)
        with pytest.raises(ChangedError):
            store.move(f"{versioned_url}/a.jpg", f"{versioned_url}/b.jpg", state)
        assert store.discard(f"{versioned_url}/a.jpg", state) is False
        assert store.replace(f"{versioned_url}/a.jpg", b"", state) is None
        assert contents(store, versioned_url) == {"a.jpg": b"new"}

    def test_place_of_a_deleted_object_is_free(self, store: S3Store, versioned_url: str) -> None:
        state = put(store, f"{versioned_url}/lock", b"first")
        assert store.discard(f"{versioned_url}/lock", state) is True
        assert store.replace(f"{versioned_url}/lock", b"late", state) is None
        put(store, f"{versioned_url}/lock", b"second")
        assert store.create(f"{versioned_url}/lock", b"third") is None
        assert contents(store, versioned_url) == {"lock": b"second"}


class TestLostAnswers:
    """The store does what it was asked to, and the request is sent again."""

    def test_of_what_is_ours(self, s3_server: S3Server, s3_url: str, store: S3Store) -> None:
        with unreliable(s3_server) as without_answer:
            with without_answer("PUT"):
                created = store.create(f"{s3_url}/lock", b"ours")
            assert created is not None
            assert created == store.stat(f"{s3_url}/lock")
            with without_answer("PUT"):
                following = store.replace(f"{s3_url}/lock", b"renewed", created)
            assert following is not None
            assert following == store.stat(f"{s3_url}/lock")
            assert contents(store, s3_url) == {"lock": b"renewed"}
            with without_answer("DELETE"):
                assert store.discard(f"{s3_url}/lock", following) is True
            assert contents(store, s3_url) == {}

    def test_of_what_is_not_ours(self, s3_server: S3Server, s3_url: str, store: S3Store) -> None:
        state = put(store, f"{s3_url}/lock", b"theirs")
        another = replace(state, etag="0" * 32)
        with unreliable(s3_server) as without_answer:
            with without_answer("PUT"):
                assert store.create(f"{s3_url}/lock", b"ours") is None
            with without_answer("PUT"):
                assert store.replace(f"{s3_url}/lock", b"ours", another) is None
            assert store.discard(f"{s3_url}/lock", another) is False
        assert contents(store, s3_url) == {"lock": b"theirs"}

    def test_of_an_image_that_is_moved_and_put_back(
        self, s3_server: S3Server, versioned_url: str, store: S3Store
    ) -> None:
        url, aside_url = f"{versioned_url}/a.jpg", f"{versioned_url}/aside/a.jpg"
        state = put(store, url, b"image")
        with unreliable(s3_server) as without_answer:
            for method in ("PUT", "DELETE"):
                with without_answer(method):
                    state = store.move(url, aside_url, state)
                assert contents(store, versioned_url) == {"aside/a.jpg": b"image"}
                with without_answer(method):
                    store.put_back(aside_url, url, state)
                assert contents(store, versioned_url) == {"a.jpg": b"image"}

    def test_of_an_image_that_is_copied(
        self, s3_server: S3Server, s3_url: str, store: S3Store
    ) -> None:
        state = put(store, f"{s3_url}/a.jpg", b"image")
        with (
            unreliable(s3_server) as without_answer,
            without_answer("PUT"),
            suppress(OccupiedError),  # it cannot know whose copy it has met
        ):
            store.copy(f"{s3_url}/a.jpg", f"{s3_url}/b.jpg", state)
        assert contents(store, s3_url) == {"a.jpg": b"image", "b.jpg": b"image"}

    def test_that_broke_off_are_asked_for_again(
        self, s3_server: S3Server, s3_url: str, store: S3Store
    ) -> None:
        content = bytes(range(256)) * 1_000
        state = put(store, f"{s3_url}/a.jpg", content)
        with unreliable(s3_server, "truncated") as without_answer:
            with without_answer("GET"):
                assert store.read(f"{s3_url}/a.jpg", state) == content
            with without_answer("GET"):
                found = store.get(f"{s3_url}/a.jpg")
        assert found is not None
        assert (found.content, found.state) == (content, state)


class TestStoreWithoutConditions:
    """Like the store of rclone, which never looks at them."""

    def test_is_found_out(self, store: S3Store, careless_url: str) -> None:
        put(store, f"{careless_url}/lock", b"ours")
        assert store.honours_conditions(f"{careless_url}/lock", b"ours") is False
        assert contents(store, careless_url) == {"lock": b"ours"}

    def test_changed_object_is_noticed_before_it_goes(
        self, store: S3Store, careless_url: str
    ) -> None:
        state = put(store, f"{careless_url}/a.jpg", b"image")
        overwrite(f"{careless_url}/a.jpg", b"newer")
        with pytest.raises(ChangedError):
            store.remove(f"{careless_url}/a.jpg", state)
        with pytest.raises(ChangedError):
            store.move(f"{careless_url}/a.jpg", f"{careless_url}/aside/a.jpg", state)
        assert contents(store, careless_url) == {"a.jpg": b"newer"}

    def test_object_that_changes_while_it_is_moved_stays(
        self, store: S3Store, careless_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(store, f"{careless_url}/a.jpg", b"image")
        after(monkeypatch, store, "_copy", lambda: overwrite(f"{careless_url}/a.jpg", b"newer"))
        with pytest.raises(ChangedError):
            store.move(f"{careless_url}/a.jpg", f"{careless_url}/aside/a.jpg", state)
        assert contents(store, careless_url) == {"a.jpg": b"newer"}

    def test_image_is_moved_put_back_copied_and_removed(
        self, store: S3Store, careless_url: str
    ) -> None:
        state = put(store, f"{careless_url}/a.jpg", b"image")
        moved = store.move(f"{careless_url}/a.jpg", f"{careless_url}/aside/a.jpg", state)
        assert contents(store, careless_url) == {"aside/a.jpg": b"image"}
        store.put_back(f"{careless_url}/aside/a.jpg", f"{careless_url}/a.jpg", moved)
        assert contents(store, careless_url) == {"a.jpg": b"image"}
        store.copy(f"{careless_url}/a.jpg", f"{careless_url}/b.jpg", state)
        store.remove(f"{careless_url}/a.jpg", state)
        assert contents(store, careless_url) == {"b.jpg": b"image"}

    def test_nothing_is_overwritten(self, store: S3Store, careless_url: str) -> None:
        state = put(store, f"{careless_url}/a.jpg", b"image")
        put(store, f"{careless_url}/b.jpg", b"another")
        for act in (store.put_back, store.copy):
            with pytest.raises(OccupiedError):
                act(f"{careless_url}/a.jpg", f"{careless_url}/b.jpg", state)
        assert contents(store, careless_url) == {"a.jpg": b"image", "b.jpg": b"another"}

    @pytest.mark.parametrize("newer", [b"newer", b"of another size"])
    def test_copy_of_a_changed_object_is_noticed(
        self, store: S3Store, careless_url: str, newer: bytes
    ) -> None:
        state = put(store, f"{careless_url}/a.jpg", b"image")
        overwrite(f"{careless_url}/a.jpg", newer)
        with pytest.raises(ChangedError):
            store.copy(f"{careless_url}/a.jpg", f"{careless_url}/b.jpg", state)
        assert contents(store, careless_url) == {"a.jpg": newer}

    def test_changed_object_is_not_discarded(self, store: S3Store, careless_url: str) -> None:
        state = put(store, f"{careless_url}/lock", b"ours")
        overwrite(f"{careless_url}/lock", b"theirs")
        assert store.discard(f"{careless_url}/lock", state) is False
        assert contents(store, careless_url) == {"lock": b"theirs"}


class TestStoreWithoutConditionalDeletion:
    """Like many stores, which learnt conditions for uploads first."""

    def test_trial_leaves_the_object(self, lax_store: S3Store, s3_url: str) -> None:
        put(lax_store, f"{s3_url}/lock", b"ours")
        assert lax_store.honours_conditions(f"{s3_url}/lock", b"ours") is True
        assert contents(lax_store, s3_url) == {"lock": b"ours"}

    def test_changed_object_is_noticed_before_it_goes(
        self, lax_store: S3Store, s3_url: str
    ) -> None:
        put(lax_store, f"{s3_url}/lock", b"ours")
        lax_store.honours_conditions(f"{s3_url}/lock", b"ours")
        state = put(lax_store, f"{s3_url}/a.jpg", b"image")
        overwrite(f"{s3_url}/a.jpg", b"newer")
        with pytest.raises(ChangedError):
            lax_store.remove(f"{s3_url}/a.jpg", state)
        assert contents(lax_store, s3_url)["a.jpg"] == b"newer"

    def test_changed_object_is_not_discarded(self, lax_store: S3Store, s3_url: str) -> None:
        state = put(lax_store, f"{s3_url}/lock", b"ours")
        overwrite(f"{s3_url}/lock", b"theirs")
        assert lax_store.discard(f"{s3_url}/lock", state) is False
        assert contents(lax_store, s3_url) == {"lock": b"theirs"}


def test_store_that_only_refuses_to_overwrite_can_hold_no_lock(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two that take over a dead lock would both have it.
    store = forget(monkeypatch, "put_object", "IfMatch")
    put(store, f"{s3_url}/lock", b"ours")
    assert store.honours_conditions(f"{s3_url}/lock", b"ours") is False


class TestFaults:
    def test_client_that_may_only_read_changes_nothing(
        self, store: S3Store, s3_server: S3Server, s3_url: str
    ) -> None:
        state = put(store, f"{s3_url}/a.jpg", b"image")
        with as_client(s3_server.reader):
            assert store.stat(f"{s3_url}/a.jpg") == state
            assert store.read(f"{s3_url}/a.jpg", state) == b"image"
            for act in (
                lambda: store.create(f"{s3_url}/lock", b"ours"),
                lambda: store.replace(f"{s3_url}/a.jpg", b"another", state),
                lambda: store.discard(f"{s3_url}/a.jpg", state),
                lambda: store.remove(f"{s3_url}/a.jpg", state),
                lambda: store.move(f"{s3_url}/a.jpg", f"{s3_url}/b.jpg", state),
                lambda: store.put_back(f"{s3_url}/a.jpg", f"{s3_url}/b.jpg", state),
                lambda: store.copy(f"{s3_url}/a.jpg", f"{s3_url}/b.jpg", state),
                lambda: store.honours_conditions(f"{s3_url}/a.jpg", b"image"),
            ):
                with pytest.raises(PermissionError):
                    act()
        assert contents(store, s3_url) == {"a.jpg": b"image"}

    def test_client_with_a_wrong_secret_learns_nothing(self, store: S3Store, s3_url: str) -> None:
        state = put(store, f"{s3_url}/a.jpg")
        with as_client({"AWS_SECRET_ACCESS_KEY": "wrong"}):
            for act in (
                lambda: store.stat(f"{s3_url}/a.jpg"),
                lambda: store.stat(f"{s3_url}/nothing"),
                lambda: store.get(f"{s3_url}/a.jpg"),
                lambda: store.read(f"{s3_url}/a.jpg", state),
                lambda: store.create(f"{s3_url}/lock", b"ours"),
                lambda: store.discard(f"{s3_url}/a.jpg", state),
                lambda: store.move(f"{s3_url}/a.jpg", f"{s3_url}/b.jpg", state),
            ):
                with pytest.raises(PermissionError):
                    act()

    def test_bucket_that_is_missing_holds_nothing_and_takes_nothing(
        self, store: S3Store, bucket_url: str, s3_url: str
    ) -> None:
        state = put(store, f"{s3_url}/a.jpg", b"image")
        nowhere = f"{bucket_url}-missing"
        assert store.stat(f"{nowhere}/a.jpg") is None
        assert store.get(f"{nowhere}/a.jpg") is None
        for act in (
            lambda: store.read(f"{nowhere}/a.jpg", state),
            lambda: store.create(f"{nowhere}/lock", b"ours"),
            lambda: store.move(f"{nowhere}/a.jpg", f"{s3_url}/b.jpg", state),
        ):
            with pytest.raises(FileNotFoundError):
                act()
        assert contents(store, s3_url) == {"a.jpg": b"image"}

    def test_image_moves_from_bucket_to_bucket(self, store: S3Store, s3_url: str) -> None:
        other_url = make_bucket()
        state = put(store, f"{s3_url}/a.jpg", b"image")
        moved = store.move(f"{s3_url}/a.jpg", f"{other_url}/aside/a.jpg", state)
        assert contents(store, s3_url) == {}
        store.put_back(f"{other_url}/aside/a.jpg", f"{s3_url}/a.jpg", moved)
        assert contents(store, s3_url) == {"a.jpg": b"image"}
        assert contents(store, other_url) == {}
