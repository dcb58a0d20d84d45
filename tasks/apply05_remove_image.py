"""Apply, step 5: one image goes, into quarantine or for good, and never without its twin."""

from tasks.apply04_check_twin import RefusedError, TwinCheck
from tasks.errors import DedupError
from tasks.journal import Entry, ImageRecord, Status
from tasks.stores import FileState, NotAFileError, Store


def quarantine_image(
    entry: Entry, check: TwinCheck, store: Store, *, is_in_doubt: bool
) -> tuple[Status, str]:
    """Move an image into quarantine.

    Args:
        entry: The image, its place in quarantine, its keeper.
        check: The checks to make first.
        store: The store of the image and of the quarantine.
        is_in_doubt: An earlier attempt may have moved it already.

    Returns:
        What has become of it, and what there is to say about that.

    Raises:
        RefusedError: A check failed; the image is where it was.
        OSError: The store failed; the image is in one of the two places, or on S3 in both.
    """
    if entry.keeper is None or entry.to_url is None:
        raise RefusedError("no keeper or no place in quarantine")
    _take(entry.image, entry.keeper, entry.to_url, check, store, is_in_doubt=is_in_doubt)
    return "done", ""


def remove_image(
    entry: Entry, check: TwinCheck, store: Store, *, is_in_doubt: bool
) -> tuple[Status, str]:
    """Delete an image for good.

    Args:
        entry: The image, its keeper, and where it waits meanwhile if the store has no conditional
            deletion.
        check: As for `quarantine_image`, and so are the other argument, result and errors.
        store: The store of the image.
        is_in_doubt: An earlier attempt may have deleted it already.
    """
    image, keeper, aside_url = entry.image, entry.keeper, entry.to_url
    if keeper is None:
        raise RefusedError("no keeper")
    if is_in_doubt and _is_nowhere(store, image.url, aside_url):
        return "already", "gone, most likely by an earlier attempt"
    if aside_url is not None:
        taken = _take(image, keeper, aside_url, check, store, is_in_doubt=is_in_doubt)
        if not store.discard(aside_url, taken):
            raise OSError(f"changed while it was deleted: {aside_url}")
        return "done", ""
    state = check.require_twin(image, keeper)
    try:
        store.remove(image.url, state)
    except DedupError as error:
        raise RefusedError(f"the image: {error}") from None
    return "done", ""


def _take(
    image: ImageRecord,
    keeper: ImageRecord,
    to_url: str,
    check: TwinCheck,
    store: Store,
    *,
    is_in_doubt: bool,
) -> FileState:
    taken = _taken_before(image, to_url, check, store) if is_in_doubt else None
    if taken is None:
        state = check.require_twin(image, keeper)
        try:
            taken = store.move(image.url, to_url, state)
        except FileNotFoundError:
            raise RefusedError(f"the image is gone: {image.url}") from None
        except DedupError as error:
            raise RefusedError(f"the image: {error}") from None
    try:
        # Had the keeper gone while the image was moved, the image would be the last of its kind.
        check.require_keeper(keeper)
    except RefusedError as refusal:
        try:
            store.put_back(to_url, image.url, taken)
        except (DedupError, OSError) as error:
            # Not refused, but failed: an undo is to look for it there.
            raise OSError(f"{refusal}, and the image waits at {to_url}: {error}") from error
        raise
    return taken


def _is_nowhere(store: Store, *urls: str | None) -> bool:
    try:
        return not any(store.stat(url) for url in urls if url is not None)
    except NotAFileError:
        return False


def _taken_before(
    image: ImageRecord, to_url: str, check: TwinCheck, store: Store
) -> FileState | None:
    """Settle what an attempt left that did not live to write its outcome."""
    check.require_inside(image)
    taken = store.stat(to_url)
    if taken is None:
        return None
    is_image = check.is_image(to_url, taken, image)
    try:
        is_free = store.stat(image.url) is None
    except NotAFileError:
        is_free = False
    if is_free and not is_image:
        store.put_back(to_url, image.url, taken)  # it had been replaced in that very moment
        return None
    if not is_image:
        raise RefusedError(f"there is something else where it was to go: {to_url}")
    try:
        check.require_unchanged(image, "the image")
    except RefusedError:
        return taken  # whatever has appeared in its place is none of our business
    # On S3 the copy was made and the image not yet removed: both are the image.
    store.discard(to_url, taken)
    return None
