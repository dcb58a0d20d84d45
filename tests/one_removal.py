"""One image that can go, its keeper, and every file around them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from config import ApplySettings
from tasks import storage
from tasks.apply01_plan_actions import plan_actions
from tasks.apply04_check_twin import TwinCheck, Verification
from tasks.journal import Entry, ImageRecord
from tasks.manifests import read_manifest
from tasks.stores import FileState, Store, store_of
from tests.written_nights import WrittenNight, write_night

IMAGE = b"image a.jpg" * 20
KEEPER = b"image k.jpg" * 20


@dataclass(frozen=True)
class Removal:
    """A source with the image `a.jpg` and its keeper `k.jpg`, and what is to happen."""

    place: str
    night: WrittenNight
    entry: Entry
    store: Store
    check: TwinCheck

    @property
    def image(self) -> ImageRecord:
        return self.entry.image

    @property
    def keeper(self) -> ImageRecord:
        assert self.entry.keeper is not None
        return self.entry.keeper

    @property
    def to_url(self) -> str:
        """Where the image goes."""
        assert self.entry.to_url is not None
        return self.entry.to_url

    def files(self) -> dict[str, bytes]:
        """Content of every file but the manifest, also of hidden ones, by its path."""
        return {
            file.relative_path: storage.read_bytes(file.url)
            for file in storage.list_files(self.place)
            if file.is_regular and not file.relative_path.startswith("workspace/")
        }

    def state(self, url: str) -> FileState:
        state = self.store.stat(url)
        assert state is not None
        return state

    def delete(self, url: str) -> None:
        assert self.store.discard(url, self.state(url))

    def write(self, url: str, content: bytes) -> None:
        """Write as anybody would who knows nothing of us."""
        storage.publish_bytes(url, content)


def lay_out_removal(
    place: str,
    action: Literal["quarantine", "permanent"] = "quarantine",
    *,
    is_content_read: bool | None = None,
) -> Removal:
    """Lay out a removal in an empty folder; checked as the store checks by default."""
    place = storage.absolute_url(place)
    night = write_night(place, {"k.jpg": ["a.jpg"]})
    store = store_of(night.source_url)
    if is_content_read is None:
        is_content_read = store.default_verification == "content"
    (entry,) = plan_actions(
        read_manifest(night.manifest_url),
        ApplySettings(action=action),
        to_folder=storage.join(place, "away"),
    )
    check = TwinCheck(Verification(night.source_url, store, is_content_read))
    return Removal(place, night, entry, store, check)


def happens(
    monkeypatch: pytest.MonkeyPatch,
    when: Literal["before", "after"],
    store: Store,
    method: str,
    event: Callable[[], object],
) -> None:
    """Let something happen right before or after the next call of a method of a store."""
    original = getattr(store, method)

    def call(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(store, method, original)
        if when == "before":
            event()
        result = original(*arguments, **options)
        if when == "after":
            event()
        return result

    monkeypatch.setattr(store, method, call)
