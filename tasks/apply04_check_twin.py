"""Apply, step 4: before each removal, look at the image and at its keeper once more."""

import math
import threading
import time
from dataclasses import dataclass, field

from tasks import storage
from tasks.errors import DedupError
from tasks.journal import ImageRecord
from tasks.paths import is_inside, is_plain, relative_to
from tasks.stores import ChangedError, FileState, NotAFileError, Store


class RefusedError(DedupError):
    """An image is left alone; the message is the reason."""


@dataclass(frozen=True)
class Verification:
    """How images are told to be what the manifest saw."""

    source_url: str
    store: Store
    is_content_read: bool
    """Compare the SHA-256 too, not only size and version tag."""


@dataclass
class _Watched:
    """What is known of one keeper."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    looked_at: float = -math.inf
    state: FileState | None = None
    is_content_right: FileState | None = None
    """The state in which its content was read and found right."""


class TwinCheck:
    """The checks before a removal. Safe to use from several threads."""

    def __init__(self, verification: Verification) -> None:
        self._verification = verification
        self._lock = threading.Lock()
        self._keepers: dict[str, _Watched] = {}

    def require_twin(self, image: ImageRecord, keeper: ImageRecord) -> FileState:
        """Make sure that an image can go, in this order.

        The image still is what the manifest saw; its keeper exists now and still is what the
        manifest saw; neither is the other; the image lies inside the source.

        Returns:
            The image's state.

        Raises:
            RefusedError: One of these does not hold.
            OSError: The store could not be asked.
        """
        state = self.require_unchanged(image, "the image")
        keeper_state = self.require_keeper(keeper)
        if storage.absolute_url(image.url) == storage.absolute_url(keeper.url):
            raise RefusedError("the image and its keeper are one path")
        if state.identity == keeper_state.identity:
            raise RefusedError("the image and its keeper are two names of one file")
        self.require_inside(image)
        return state

    def require_inside(self, image: ImageRecord) -> None:
        """Make sure that an image lies in the source, by its only spelling.

        Raises:
            RefusedError: It does not.
        """
        source_url = self._verification.source_url
        if not is_inside(image.url, source_url) or not is_plain(relative_to(image.url, source_url)):
            raise RefusedError(f"not a plain path inside the source {source_url}: {image.url}")

    def require_keeper(self, keeper: ImageRecord) -> FileState:
        """Make sure that a keeper exists now and is what the manifest saw.

        One look serves all who asked before it began. The content is read once for many images,
        and again whenever it may have changed.

        Raises:
            RefusedError: It is not.
        """
        asked_at = time.monotonic()
        with self._lock:
            watched = self._keepers.setdefault(keeper.url, _Watched())
        with watched.lock:
            if watched.state is None or watched.looked_at < asked_at:
                watched.looked_at = time.monotonic()
                watched.state = None
                state = self._look(keeper, "its keeper")
                if state != watched.is_content_right:
                    self._require_content(keeper, state, "its keeper")
                    watched.is_content_right = state
                watched.state = state
            return watched.state

    def require_unchanged(self, image: ImageRecord, what: str) -> FileState:
        """Make sure that an image is what the manifest saw.

        Raises:
            RefusedError: It is not.
        """
        state = self._look(image, what)
        self._require_content(image, state, what)
        return state

    def is_image(self, url: str, state: FileState, image: ImageRecord) -> bool:
        """Tell whether what was moved or copied to another place is an image."""
        if state.size_bytes != image.size_bytes:
            return False
        # Copies of large objects get another version tag, so only an equal one tells something.
        if state.etag == image.etag and not self._verification.is_content_read:
            return True
        return self._verification.store.sha256(url, state) == image.sha256

    def _look(self, image: ImageRecord, what: str) -> FileState:
        try:
            state = self._verification.store.stat(image.url)
        except NotAFileError as error:
            raise RefusedError(f"{what}: {error}") from None
        if state is None:
            raise RefusedError(f"{what} is gone: {image.url}")
        require_version(state, image, what)
        return state

    def _require_content(self, image: ImageRecord, state: FileState, what: str) -> None:
        if not self._verification.is_content_read:
            return
        try:
            found = self._verification.store.sha256(image.url, state)
        except FileNotFoundError:
            raise RefusedError(f"{what} is gone: {image.url}") from None
        except (NotAFileError, ChangedError) as error:
            raise RefusedError(f"{what}: {error}") from None
        if found != image.sha256:
            raise RefusedError(f"{what} has another content than the manifest saw: {image.url}")


def require_version(state: FileState, image: ImageRecord, what: str) -> None:
    """Compare size and version tag with what the manifest saw.

    Raises:
        RefusedError: They differ.
    """
    if (state.size_bytes, state.etag) != (image.size_bytes, image.etag):
        raise RefusedError(
            f"{what} changed: {state.size_bytes} bytes and {state.etag}, the manifest saw "
            f"{image.size_bytes} bytes and {image.etag}: {image.url}"
        )
