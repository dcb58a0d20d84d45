"""Apply, step 6: one image is copied elsewhere, and nothing there is overwritten."""

import hashlib

from tasks.apply04_check_twin import RefusedError, TwinCheck
from tasks.errors import DedupError
from tasks.journal import Entry, Status
from tasks.stores import OccupiedError, Store


def copy_image(entry: Entry, check: TwinCheck, store: Store, target: Store) -> tuple[Status, str]:
    """Copy an image; on one S3 store without downloading it.

    Args:
        entry: The image and where its copy goes.
        check: Makes sure that the image is what the manifest saw.
        store: The store of the image.
        target: The store of the copy.

    Returns:
        `done`, or `already` when a file with the same content is there.

    Raises:
        RefusedError: The image is gone or changed, or another file is in the way.
        OSError: A store failed; no part of a copy is left.
    """
    image, to_url = entry.image, entry.to_url
    if to_url is None:
        raise RefusedError(f"not a plain path: {image.url}")
    state = check.require_unchanged(image, "the image")
    try:
        if type(store) is type(target):
            target.copy(image.url, to_url, state)
        else:
            content = store.read(image.url, state)
            if hashlib.sha256(content).hexdigest() != image.sha256:
                raise RefusedError("the image has another content than the manifest saw")
            is_taken = target.stat(to_url) is not None
            if is_taken or target.create(to_url, content, state.modified_at) is None:
                raise OccupiedError(f"there is a file already: {to_url}")
    except OccupiedError:
        if is_same_content(target, to_url, image.sha256):
            return "already", "the same content is there"
        raise RefusedError(f"another file is there already: {to_url}") from None
    except FileNotFoundError:
        if store.stat(image.url) is not None:
            raise  # it is the place for the copy that is missing
        raise RefusedError(f"the image is gone: {image.url}") from None
    except RefusedError:
        raise
    except DedupError as error:
        raise RefusedError(f"the image: {error}") from None
    return "done", ""


def is_same_content(store: Store, url: str, sha256: str) -> bool:
    """Tell whether a file has a content."""
    state = store.stat(url)
    return state is not None and store.sha256(url, state) == sha256
