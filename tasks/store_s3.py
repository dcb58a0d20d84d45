"""Images on S3: every request says which object it means, by its version tag."""

import hashlib
import mimetypes
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from fsspec.asyn import sync

from tasks import storage
from tasks.errors import is_condition_failed, patiently
from tasks.stores import (
    ChangedError,
    FileState,
    NotAFileError,
    OccupiedError,
    Stored,
)


class S3Store:
    """S3, or a store that speaks its language. See `stores.Store`.

    Keys are sent as they are; fsspec would take some of them apart (`?versionId=`).
    """

    has_folders = False
    default_verification = "version"

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol

    def stat(self, url: str) -> FileState | None:
        try:
            head = self._call("head_object", url)
        except FileNotFoundError:
            return None
        return _state(url, head)

    def read(self, url: str, state: FileState) -> bytes:
        return self._read(url, IfMatch=_quoted(state.etag)).content

    def sha256(self, url: str, state: FileState) -> str:
        return hashlib.sha256(self.read(url, state)).hexdigest()

    def shares_moves_with(self, url: str, other_url: str) -> bool:  # noqa: ARG002
        return storage.is_s3(storage.filesystem(other_url)[0])

    def move(self, url: str, to_url: str, state: FileState) -> FileState:
        moved = self._copy_if_free(url, to_url, state)
        try:
            self.remove(url, state)
        except ChangedError:
            self.discard(to_url, moved)
            raise
        return moved

    def put_back(self, from_url: str, url: str, state: FileState) -> None:
        self._copy_if_free(from_url, url, state)
        self.discard(from_url, state)

    def remove(self, url: str, state: FileState) -> None:
        if not self.discard(url, state):
            raise ChangedError("changed while it was removed")

    def copy(self, url: str, to_url: str, state: FileState) -> None:
        self._copy_if_free(url, to_url, state)

    def get(self, url: str) -> Stored | None:
        try:
            return self._read(url)
        except FileNotFoundError:
            return None

    def create(
        self,
        url: str,
        content: bytes,
        modified_at: datetime | None = None,  # noqa: ARG002 (S3 sets it)
    ) -> FileState | None:
        return self._put(url, content, IfNoneMatch="*")

    def replace(self, url: str, content: bytes, state: FileState) -> FileState | None:
        return self._put(url, content, IfMatch=_quoted(state.etag))

    def discard(self, url: str, state: FileState) -> bool:
        # Not every store knows the condition on deletions, so the object is looked at first.
        found = self.stat(url)
        if found is None or not _is_same(found, state):
            return found is None
        try:
            self._call("delete_object", url, IfMatch=_quoted(state.etag))
        except FileNotFoundError:
            return True
        except OSError as error:
            if not is_condition_failed(error):
                raise
            return self.stat(url) is None  # some stores answer 412 where nothing is
        return True

    def aside_url(self, url: str) -> str | None:  # noqa: ARG002
        return None

    def prune(self, url: str) -> None:
        """There are no folders on S3."""

    def honours_conditions(self, url: str, content: bytes) -> bool:
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": _quoted("0" * 32)}):
            try:
                self._call("put_object", url, Body=content, **condition)
            except OSError as error:
                if not is_condition_failed(error):
                    raise
            else:
                return False
        return True

    def _copy_if_free(self, url: str, to_url: str, state: FileState) -> FileState:
        """Copy an object to a place where nothing is."""
        # Not every store knows the condition on copies, so the place is looked at first.
        if self.stat(to_url) is not None:
            raise OccupiedError(f"there is a file already: {to_url}")
        copied = self._copy(url, to_url, state)
        if copied is not None:
            return copied
        there = self.stat(to_url)
        if there is None or not _is_same(there, state):
            raise OccupiedError(f"there is a file already: {to_url}")
        return there  # a request that was sent again has met its own result

    def _copy(self, url: str, to_url: str, state: FileState) -> FileState | None:
        """Copy an object in a state; None when another has appeared where it was to go."""
        bucket, key = _place(url)
        try:
            answer = self._call(
                "copy_object",
                to_url,
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceIfMatch=_quoted(state.etag),
                IfNoneMatch="*",
            )
        except OSError as error:
            if not is_condition_failed(error):
                raise
            found = self.stat(url)
            if found is None or not _is_same(found, state):
                raise ChangedError("changed while it was copied") from None
            return None
        result = answer.get("CopyObjectResult", {})
        if str(result.get("ETag")).strip('"') == state.etag:
            return replace(state, identity="/".join(_place(to_url)))
        # Large or encrypted objects get another tag, and some stores copy whatever is there.
        copied, found = self.stat(to_url), self.stat(url)
        if copied is None or found is None:
            raise ChangedError("changed while it was copied")
        if not _is_same(found, state) or copied.size_bytes != state.size_bytes:
            self.discard(to_url, copied)
            raise ChangedError("changed while it was copied")
        return copied

    def _put(self, url: str, content: bytes, **conditions: str) -> FileState | None:
        kind = mimetypes.guess_type(url)[0] or "application/octet-stream"
        try:
            answer = self._call("put_object", url, Body=content, ContentType=kind, **conditions)
        except FileNotFoundError:
            if "IfMatch" not in conditions:
                raise  # there is no such bucket
            return None
        except OSError as error:
            if not is_condition_failed(error):
                raise
            # A request is sent again when its answer is lost, and then meets its own result.
            # Contents that matter carry a random token, so equal ones are ours.
            found = self.get(url)
            return found.state if found and found.content == content else None
        state = self.stat(url)
        is_ours = state is not None and state.etag == str(answer["ETag"]).strip('"')
        return state if is_ours else None

    def _read(self, url: str, **conditions: str) -> Stored:
        bucket, key = _place(url)
        fs = self._filesystem()

        async def fetch() -> tuple[Any, bytes]:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **conditions)
            async with answer["Body"] as body:
                return answer, await body.read()

        try:
            # Requests are tried again by s3fs, a body that breaks off is not.
            answer, content = patiently(lambda: sync(fs.loop, fetch))
        except OSError as error:
            if is_condition_failed(error):
                raise ChangedError("changed while it was read") from None
            raise
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        seen_at = parsedate_to_datetime(said) if said else datetime.now(UTC)
        return Stored(content, _state(url, answer), seen_at.astimezone(UTC))

    def _call(self, operation: str, url: str, **arguments: Any) -> Any:
        bucket, key = _place(url)
        return self._filesystem().call_s3(operation, Bucket=bucket, Key=key, **arguments)

    def _filesystem(self) -> Any:
        return storage.filesystem(f"{self._protocol}://")[0]


def _place(url: str) -> tuple[str, str]:
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def _state(url: str, answer: Any) -> FileState:
    etag = str(answer["ETag"]).strip('"')
    modified_at: datetime = answer["LastModified"]
    if url.endswith("/"):
        raise NotAFileError(f"a folder: {url}")
    return FileState(
        size_bytes=int(answer["ContentLength"]),
        etag=etag,
        identity="/".join(_place(url)),
        changed=f"{etag} {modified_at.isoformat()}",
        modified_at=modified_at.astimezone(UTC),
    )


def _is_same(found: FileState, seen: FileState) -> bool:
    return (found.size_bytes, found.etag) == (seen.size_bytes, seen.etag)


def _quoted(etag: str) -> str:
    return f'"{etag}"'
