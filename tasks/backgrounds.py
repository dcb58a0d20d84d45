"""Backgrounds: what the partition of a fixed camera looks like when nothing happens, as PNGs.

The night has one of each partition, made before anything is embedded, so that the same night run
again compares with the same. The workspace remembers them for nights of too few frames.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime

from config import FeatureSettings
from tasks import storage
from tasks.errors import ArtifactError, UnreadableImageError
from tasks.feature_store import feature_fingerprint
from tasks.images import as_png, from_png
from tasks.memo import Pixels
from tasks.schemas import fingerprint


@dataclass(frozen=True)
class Background:
    """One background."""

    pixels: Pixels
    """`(S, S, 3)` uint8 RGB."""
    digest: str
    """16 hexadecimal digits of the SHA-256 of the pixels."""


def background_of(pixels: Pixels) -> Background:
    """Give pixels their digest."""
    return Background(pixels, hashlib.sha256(pixels.tobytes()).hexdigest()[:16])


def background_url(
    night_url: str, settings: FeatureSettings, view: str | None, partition: str
) -> str:
    """Where the background of a partition in a night is, whatever its name has in it."""
    name = fingerprint(feature_fingerprint(settings), view, partition)
    return storage.join(night_url, f"background-{name}.png")


def remembered_url(
    workspace_url: str, settings: FeatureSettings, view: str | None, partition: str
) -> str:
    """The folder of all backgrounds of a partition that were made of enough frames."""
    name = fingerprint(view, partition)
    return storage.join(workspace_url, "backgrounds", feature_fingerprint(settings), name)


def read_background(url: str) -> Background | None:
    """Read a background; None when there is none.

    Raises:
        ArtifactError: It is damaged.
    """
    try:
        return background_of(from_png(storage.read_bytes(url)))
    except FileNotFoundError:
        return None
    except UnreadableImageError as error:
        raise ArtifactError(f"expected a background, found: {error}: {url}") from None


def publish_background(url: str, background: Background) -> None:
    """Publish a background as a PNG."""
    storage.publish_bytes(url, as_png(background.pixels))


def remember(folder_url: str, background: Background, captured_at: datetime) -> None:
    """Keep a background for other nights.

    Args:
        folder_url: As `remembered_url` gives it.
        background: The background.
        captured_at: When the last of its frames was captured.
    """
    name = f"{_stamp(captured_at)}-{background.digest}.png"
    publish_background(storage.join(folder_url, name), background)


def recall(folder_url: str, captured_at: datetime) -> Background | None:
    """Find the last background of frames up to a time, or else the first one after it.

    Args:
        folder_url: As `remembered_url` gives it.
        captured_at: The time.

    Returns:
        None when there is no background at all.
    """
    urls = storage.list_names(folder_url, ".png")
    stamps = [url.rpartition("/")[2].partition("-")[0] for url in urls]
    position = max(0, bisect_right(stamps, _stamp(captured_at)) - 1)
    return read_background(urls[position]) if urls else None


def _stamp(time: datetime) -> str:
    return time.strftime("%Y%m%dT%H%M%S.%f")
