"""Purge: one image leaves the quarantine for good, if its keeper still lives."""

from tasks.apply04_check_twin import RefusedError, TwinCheck
from tasks.journal import Entry, Status
from tasks.stores import Store


def purge_image(
    entry: Entry, check: TwinCheck, store: Store, *, allow_orphans: bool
) -> tuple[Status, str]:
    """Delete an image from quarantine.

    Args:
        entry: The image, its place in quarantine, its keeper.
        check: Tells whether the keeper still is what the manifest saw.
        store: The store of quarantine and keeper.
        allow_orphans: Delete it whatever has become of its keeper.

    Returns:
        `done`, or `already` when it is not there any more.

    Raises:
        RefusedError: The keeper is gone or changed, or something else is in its place.
    """
    if entry.to_url is None or entry.keeper is None:
        raise RefusedError("no place in quarantine or no keeper")
    waiting = store.stat(entry.to_url)
    if waiting is None:
        return "already", "not in quarantine"
    if not check.is_image(entry.to_url, waiting, entry.image):
        raise RefusedError(f"what lies in quarantine is not the image: {entry.to_url}")
    if not allow_orphans and check.require_keeper(entry.keeper).identity == waiting.identity:
        raise RefusedError("the image in quarantine and its keeper are one file")
    if not store.discard(entry.to_url, waiting):
        raise RefusedError(f"changed while it was deleted: {entry.to_url}")
    return "done", ""
