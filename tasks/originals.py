"""The images that a manifest is about, for a browser: only those, and only as the run saw them."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow.compute as pc

from config import FeatureSettings
from tasks import storage
from tasks.images import as_browsers_show
from tasks.manifests import LoadedManifest, workspace_of
from tasks.paths import relative_to

_REMEMBERED = 8


@dataclass(frozen=True)
class ShownImage:
    """An image as a browser gets it."""

    content: bytes
    media_type: str


class Originals:
    """Finds the images of a manifest, in their place or in quarantine."""

    def __init__(self, manifest: LoadedManifest) -> None:
        self._manifest = manifest
        self._max_pixels = _max_pixels(manifest)
        # A side-by-side view asks for the same two again and again.
        self.show = lru_cache(maxsize=_REMEMBERED)(self._show)

    def _show(self, url: str) -> ShownImage:
        """Read an image and make it one that browsers show.

        Raises:
            FileNotFoundError: The manifest does not name it, or what it saw there is nowhere any
                more.
            UnreadableImageError: It is too large, or is no image.
        """
        content = self._read(url, self._row(url))
        return ShownImage(*as_browsers_show(content, max_pixels=self._max_pixels))

    def _row(self, url: str) -> dict[str, Any]:
        table = self._manifest.table
        position = pc.index(table["url"], value=url).as_py()
        if position < 0:
            raise FileNotFoundError("the manifest names no such image")
        row: dict[str, Any] = table.slice(position, 1).to_pylist()[0]
        return row

    def _read(self, url: str, row: dict[str, Any]) -> bytes:
        if row["sha256"] is None:
            raise FileNotFoundError("the run never read this file")
        for place in [url, *self._quarantined(url)]:
            try:
                content = storage.read_bytes(place)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            # Somebody who judges pictures must see those that the run has judged.
            if hashlib.sha256(content).hexdigest() == row["sha256"]:
                return content
        raise FileNotFoundError("the image is gone, or is another one by now")

    def _quarantined(self, url: str) -> list[str]:
        summary = self._manifest.summary
        workspace_url = workspace_of(self._manifest.url, summary.run_id)
        if workspace_url is None:
            return []
        applies = storage.list_names(storage.join(workspace_url, "quarantine", summary.run_id))
        return [storage.join(folder, relative_to(url, summary.source_url)) for folder in applies]


def _max_pixels(manifest: LoadedManifest) -> int:
    """Up to how many pixels the run has decoded its images."""
    settings = json.loads(storage.read_metadata(manifest.url)["config"])
    default = FeatureSettings().max_image_pixels
    return int(settings.get("features", {}).get("max_image_pixels", default))
