"""Undo: one image goes back to where it was, unless another file is there now."""

from tasks.apply04_check_twin import RefusedError, TwinCheck
from tasks.errors import DedupError
from tasks.journal import Entry, Status
from tasks.stores import Store


def put_back_image(
    entry: Entry, check: TwinCheck, store: Store, *, is_in_doubt: bool, is_purged: bool = False
) -> tuple[Status, str]:
    """Move an image from quarantine back to its place.

    Args:
        entry: The image and its place in quarantine.
        check: Tells whether what lies there is the image.
        store: The store of both places.
        is_in_doubt: The removal or an earlier undo may have ended halfway.
        is_purged: A purge has deleted it, which explains that it is nowhere.

    Returns:
        `done`, or `already` when the image is in its place and nothing is in quarantine.

    Raises:
        RefusedError: It cannot be put back; nothing was overwritten.
    """
    image, from_url = entry.image, entry.to_url
    check.require_inside(image)
    waiting = None if from_url is None else store.stat(from_url)
    there = store.stat(image.url)
    if from_url is None or waiting is None:
        if there is not None and check.is_image(image.url, there, image):
            return "already", "in its place"
        if from_url is None:
            raise RefusedError("deleted for good")
        if is_purged:
            raise RefusedError("purged, and so deleted for good")
        raise RefusedError("neither in its place nor where it was moved to")
    if not check.is_image(from_url, waiting, image):
        raise RefusedError(f"what lies in quarantine is not the image: {from_url}")
    if there is None:
        try:
            store.put_back(from_url, image.url, waiting)
        except DedupError as error:
            raise RefusedError(str(error)) from None
        return "done", ""
    # Halfway, both places hold the image; otherwise somebody has put another file there.
    is_halfway = is_in_doubt and check.is_image(image.url, there, image)
    if not is_halfway and there.identity != waiting.identity:
        raise RefusedError(f"a file has appeared in its place: {image.url}")
    if not store.discard(from_url, waiting):
        raise RefusedError(f"changed while it was put back: {from_url}")
    return "done", ""
