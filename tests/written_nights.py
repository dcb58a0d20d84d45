"""Nights that were never embedded: files on a store and a manifest that decides about them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tasks import storage
from tasks.manifests import DIGEST, manifest_digest
from tasks.schemas import MANIFEST, MANIFEST_VERSION
from tasks.stores import store_of


@dataclass(frozen=True)
class WrittenNight:
    """A source, its workspace and a manifest about it."""

    source_url: str
    workspace_url: str
    manifest_url: str
    rows: list[dict[str, Any]]
    contents: dict[str, bytes]
    """Content of every image, by its path in the source."""

    def url(self, path: str) -> str:
        return storage.join(self.source_url, path)

    def removed(self) -> list[str]:
        """Paths of the images to remove."""
        return [self._path(row) for row in self.rows if row["action"] == "remove"]

    def kept(self) -> list[str]:
        return [self._path(row) for row in self.rows if row["action"] != "remove"]

    def _path(self, row: Mapping[str, Any]) -> str:
        return str(row["url"])[len(self.source_url) + 1 :]

    def rewrite(self, rows: Sequence[Mapping[str, Any]], **metadata: str) -> "WrittenNight":
        """Write the manifest anew, with other rows or other metadata."""
        publish_manifest(self.manifest_url, self.source_url, rows, metadata)
        return replace(self, rows=[dict(row) for row in rows])


def write_night(
    place: str, groups: Mapping[str, Sequence[str]], *, noise: Sequence[str] = ()
) -> WrittenNight:
    """Lay out a source at `<place>/source` and a manifest in `<place>/workspace`.

    Args:
        place: An empty folder.
        groups: The path of each keeper and the paths of the images that go for it.
        noise: Paths of images that are like no other.
    """
    source_url = storage.absolute_url(storage.join(storage.absolute_url(place), "source"))
    workspace_url = storage.absolute_url(storage.join(storage.absolute_url(place), "workspace"))
    paths = [*noise, *groups, *(path for group in groups.values() for path in group)]
    contents = {path: f"image {path}".encode() * 20 for path in paths}
    storage.make_folder(source_url)
    store = store_of(source_url)
    with ThreadPoolExecutor(16) as pool:
        urls = [storage.join(source_url, path) for path in contents]
        assert all(pool.map(store.create, urls, contents.values()))
    keeper_of = {path: keeper for keeper, group in groups.items() for path in group}
    cluster_of = {keeper: number for number, keeper in enumerate(groups)}
    rows = []
    for file in storage.list_files(source_url):
        path = file.relative_path
        keeper = keeper_of.get(path)
        rows.append(
            {
                "url": file.url,
                "size_bytes": file.size_bytes,
                "etag": file.etag,
                "sha256": hashlib.sha256(contents[path]).hexdigest(),
                "cluster_id": cluster_of.get(keeper or path, -1),
                "action": "keep" if keeper is None else "remove",
                "keeper_url": None if keeper is None else storage.join(source_url, keeper),
                "distance": None if keeper is None else 0.03125,
                "reason": "keeper" if keeper is None else "within eps",
            }
        )
    manifest_url = storage.join(workspace_url, "runs", "night-0123456789abcdef", "manifest.parquet")
    publish_manifest(manifest_url, source_url, rows, {})
    return WrittenNight(source_url, workspace_url, manifest_url, rows, contents)


def publish_manifest(
    url: str, source_url: str, rows: Sequence[Mapping[str, Any]], changes: Mapping[str, str]
) -> None:
    """Write a manifest with a right digest, whatever its rows say."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=MANIFEST)
    metadata = {
        "run_id": "night-0123456789abcdef",
        "source_url": source_url,
        "config": json.dumps({"source": {"partition_by": None}}),
        "eps": "0.05",
        "weights_digest": "w" * 64,
        "is_complete": "true",
        "recall": "1.0",
        "is_search_exact": "true",
        "num_ignored": "{}",
        "counts": "{}",
        "schema_version": str(MANIFEST_VERSION),
        **changes,
    }
    metadata[DIGEST] = changes.get(DIGEST, manifest_digest(table, metadata))
    storage.publish_table(url, table.replace_schema_metadata(metadata))
