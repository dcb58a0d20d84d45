"""The journal of an apply: what was going to happen to each image, and what happened.

A folder of numbered segments beside the manifest. A segment is a few lines of JSON that appear in
one step and are never changed: a head, entries, and the digest of all that. Segments with intents
are written before any of their images is touched, segments with outcomes after it. So after a
crash only images with an intent and no outcome are in doubt, and the store is asked about them.
"""

import getpass
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tasks import storage
from tasks.errors import ArtifactError, DedupError, LockLostError, StorageError
from tasks.schemas import require_version
from tasks.stores import store_of

JOURNAL_VERSION = 1

Operation = Literal["quarantine", "permanent", "copy", "undo", "purge"]
Kind = Literal["begin", "intents", "outcomes", "end"]
Status = Literal["done", "already", "refused", "failed"]


_APPLY_ID = re.compile(
    r"(?P<run>[A-Za-z0-9_-][A-Za-z0-9._-]*)-(quarantine|permanent|copy)-[0-9a-f]{8}-[1-9][0-9]{0,5}"
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ImageRecord(_Record):
    """An image as the manifest saw it."""

    url: str
    size_bytes: int
    etag: str
    sha256: str


class Entry(_Record):
    """What is going to happen to an image, or what has happened."""

    image: ImageRecord
    to_url: str | None
    """Where it goes: its place in quarantine, or the copy."""
    keeper: ImageRecord | None
    rule: str
    """The manifest's reason for the action."""
    status: Status | None = None
    """None for an intent. `done`; `already` as wanted; `refused` because a check failed; `failed`
    because of a fault."""
    detail: str = ""
    at: AwareDatetime | None = None
    """When it was done."""


class Head(_Record):
    """The first line of a segment."""

    journal_version: int
    apply_id: str
    number: int
    operation: Operation
    kind: Kind
    at: AwareDatetime
    who: str
    """User, host and process."""
    token: str
    """Random, so that no two segments are equal."""
    details: dict[str, str]
    """Of `begin`: manifest, digest, source, settings. Of `end`: `counts_of` its operation."""


@dataclass(frozen=True)
class Segment:
    """One file of the journal."""

    head: Head
    entries: tuple[Entry, ...]


class Journal:
    """The journal of one apply, read once and then appended to by one writer under the lock."""

    def __init__(self, url: str, apply_id: str, segments: Iterable[Segment] = ()) -> None:
        self.url = url
        self.apply_id = apply_id
        self.heads: list[Head] = []
        self._last: dict[str, dict[str, Entry]] = {}
        for segment in segments:
            self._remember(segment)

    @property
    def num_images(self) -> int:
        """Images that anything is known of."""
        return len(self._last)

    def detail(self, name: str) -> str:
        """What the first segment says of the apply.

        Raises:
            ArtifactError: There is no such segment, or it does not say it.
        """
        if not self.heads:
            raise ArtifactError(f"no such apply: expected its journal, found nothing: {self.url}")
        if name not in self.heads[0].details:
            raise ArtifactError(f"expected a journal that says {name}: {self.url}")
        return self.heads[0].details[name]

    def has_begun(self, operation: Operation) -> bool:
        """Tell whether an operation has ever been begun."""
        return any(head.operation == operation for head in self.heads)

    def has_ended(self, operation: Operation) -> bool:
        """Tell whether nothing was left to do when this operation was last carried out."""
        kinds = [head.kind for head in self.heads if head.operation == operation]
        return kinds[-1:] == ["end"]

    def last(self, url: str, operation: Operation) -> Entry | None:
        """The last entry of an operation on an image; in doubt when its status is None."""
        return self._last.get(url, {}).get(operation)

    def entries(self, operation: Operation) -> list[Entry]:
        """The last entry of every image that an operation was begun on."""
        return [last[operation] for last in self._last.values() if operation in last]

    def counts_of(self, operation: Operation) -> dict[str, str]:
        """Images that an operation was begun on: how many are `done`, how many are `left` alone."""
        entries = self.entries(operation)
        num_done = sum(entry.status in ("done", "already") for entry in entries)
        return {"done": str(num_done), "left": str(len(entries) - num_done)}

    def removals(self) -> list[Entry]:
        """The last entry of every image that was to be moved away or deleted."""
        return [*self.entries("quarantine"), *self.entries("permanent")]

    def is_back(self, url: str) -> bool:
        """Tell whether an undo has put an image back, for certain."""
        undone = self.last(url, "undo")
        return undone is not None and undone.status in ("done", "already")

    def is_purged(self, url: str) -> bool:
        """Tell whether an image has left the quarantine for good, for certain."""
        purged = self.last(url, "purge")
        return purged is not None and purged.status in ("done", "already")

    def is_in_doubt(self, url: str, operation: Operation) -> bool:
        """Tell whether an operation was begun on an image and has no outcome yet."""
        last = self.last(url, operation)
        return last is not None and last.status is None

    def append(
        self,
        operation: Operation,
        kind: Kind,
        entries: Iterable[Entry] = (),
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Write one segment.

        Raises:
            LockLostError: Somebody else has written to this journal meanwhile.
            StorageError: It could not be written.
        """
        head = Head(
            journal_version=JOURNAL_VERSION,
            apply_id=self.apply_id,
            number=len(self.heads),
            operation=operation,
            kind=kind,
            at=now(),
            who=who(),
            token=secrets.token_hex(8),
            details=dict(details or {}),
        )
        segment = Segment(head, tuple(entries))
        url = storage.join(self.url, f"{head.number:06d}.jsonl")
        try:
            created = store_of(url).create(url, to_lines(segment))
        except DedupError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"cannot write the journal {url}: {reason}. Without it nothing "
                "more is done; the same call goes on from here"
            ) from error
        if created is None:
            raise LockLostError(f"somebody else has written {url} meanwhile")
        self._remember(segment)

    def _remember(self, segment: Segment) -> None:
        self.heads.append(segment.head)
        for entry in segment.entries:
            self._last.setdefault(entry.image.url, {})[segment.head.operation] = entry


def read_journal(url: str, apply_id: str) -> Journal:
    """Read a journal; an empty one when there is no such folder.

    Raises:
        ArtifactError: A segment is missing, damaged, or of another apply or version.
    """
    urls = storage.list_names(url, ".jsonl")
    with ThreadPoolExecutor(16) as pool:
        segments = list(pool.map(lambda url: parse_segment(storage.read_bytes(url), url), urls))
    for number, segment in enumerate(segments):
        found = (segment.head.apply_id, segment.head.number)
        if found != (apply_id, number):
            raise ArtifactError(
                f"expected segment {number} of {apply_id}, found {found[1]} of {found[0]}: "
                f"{urls[number]}"
            )
    return Journal(url, apply_id, where_they_are(segments, url, apply_id))


def where_they_are(segments: list[Segment], url: str, apply_id: str) -> list[Segment]:
    """Name the quarantine where it is now: it lies in the workspace, and that may have been moved.

    Args:
        segments: As they were written.
        url: Where they lie now.
        apply_id: The apply that they are of.
    """
    details = segments[0].head.details if segments else {}
    run_id = apply_id.rsplit("-", 3)[0]
    in_workspace = f"/quarantine/{run_id}/{apply_id}"
    was = details.get("to_folder", "")
    now = url.removesuffix(f"/runs/{run_id}/applies/{apply_id}") + in_workspace
    is_elsewhere = json.loads(details.get("settings", "{}")).get("quarantine_url") is not None
    if is_elsewhere or now == was or not was.endswith(in_workspace):
        return segments

    def moved(place: str | None) -> str | None:
        is_in_quarantine = place is not None and place.startswith(f"{was}/")
        return f"{now}{place[len(was) :]}" if place and is_in_quarantine else place

    begin = segments[0].head.model_copy(update={"details": details | {"to_folder": now}})
    return [
        Segment(
            begin if number == 0 else segment.head,
            tuple(
                entry.model_copy(update={"to_url": moved(entry.to_url)})
                for entry in segment.entries
            ),
        )
        for number, segment in enumerate(segments)
    ]


def last_head(url: str) -> Head | None:
    """Read how a journal ends, without the rest of it; None when there is no segment.

    Raises:
        ArtifactError: Its last segment is damaged.
    """
    urls = storage.list_names(url, ".jsonl")
    return parse_segment(storage.read_bytes(urls[-1]), urls[-1]).head if urls else None


def parse_segment(content: bytes, url: str) -> Segment:
    """Read a segment.

    Raises:
        ArtifactError: It is damaged or no segment.
    """
    body, _, last = content.removesuffix(b"\n").rpartition(b"\n")
    try:
        lines = body.decode().split("\n")
        is_whole = json.loads(last) == {"sha256": hashlib.sha256(body).hexdigest()}
        if not is_whole:
            raise ArtifactError(f"expected a segment of a journal, found a damaged file: {url}")
        # Before anything else: a newer head may have lines that this code does not know.
        version = json.loads(lines[0])["journal_version"]
        require_version("journal", str(version), JOURNAL_VERSION, url)
        return Segment(
            head=Head.model_validate_json(lines[0]),
            entries=tuple(Entry.model_validate_json(line) for line in lines[1:]),
        )
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"expected a segment of a journal, found something else: {url} ({reason})"
        ) from None


def to_lines(segment: Segment) -> bytes:
    """Write a segment: its head, its entries, and the digest of the lines before."""
    # Only "\n" ends a line; JSON escapes it wherever it stands in a name.
    lines = [record.model_dump_json() for record in (segment.head, *segment.entries)]
    body = "\n".join(lines).encode()
    return body + b"\n" + json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


def applies_url(workspace_url: str, run_id: str) -> str:
    """Where the journals of a run lie."""
    return storage.join(workspace_url, "runs", run_id, "applies")


def journal_url(workspace_url: str, apply_id: str) -> str:
    """Where the journal of an apply lies.

    Raises:
        ArtifactError: It is no apply id.
    """
    match = _APPLY_ID.fullmatch(apply_id)
    if match is None:
        raise ArtifactError(
            "expected an apply id such as night-0123456789abcdef-quarantine-01234567-1, "
            f"found {apply_id!r}"
        )
    return storage.join(applies_url(workspace_url, match["run"]), apply_id)


def list_applies(folder_url: str) -> list[str]:
    """The applies of one run, as `applies_url` gives its folder."""
    names = [url.rstrip("/").rpartition("/")[2] for url in storage.list_names(folder_url)]
    return sorted(name for name in names if _APPLY_ID.fullmatch(name))


def current_journal(folder_url: str, name: str) -> Journal:
    """The journal that a call continues: the last of this name, or a new one once it is undone.

    Args:
        folder_url: Where the journals of the run lie.
        name: The apply's id without the number at its end.
    """
    numbers = [
        int(apply_id.rpartition("-")[2])
        for apply_id in list_applies(folder_url)
        if apply_id.rpartition("-")[0] == name
    ]
    number = max(numbers, default=1)
    journal = read_journal(storage.join(folder_url, f"{name}-{number}"), f"{name}-{number}")
    if not journal.has_begun("undo"):
        return journal
    return Journal(storage.join(folder_url, f"{name}-{number + 1}"), f"{name}-{number + 1}")


def removed_by_others(folder_url: str, apply_id: str) -> dict[str, str]:
    """The images that other applies of the same run have removed, and which ones those are."""
    removed = {}
    for other in list_applies(folder_url):
        if other == apply_id:
            continue
        journal = read_journal(storage.join(folder_url, other), other)
        for entry in journal.removals():
            if entry.status == "done" and not journal.is_back(entry.image.url):
                removed[entry.image.url] = other
    return removed


def who() -> str:
    """Who is acting: user, host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


def now() -> datetime:
    """The present time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
