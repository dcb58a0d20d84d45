"""Stage 1: list the source and write down what there is."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa

from config import DedupConfig, SourceSettings
from tasks import storage
from tasks.errors import SourceError
from tasks.references import Inventory
from tasks.schemas import INVENTORY, fingerprint
from tasks.stage import stage
from tasks.storage import StoredFile

logger = logging.getLogger(__name__)

PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Endings of files that somebody is still writing."""

INVALID_NAME = "file name is not valid UTF-8"


@stage("list_images")
def list_images(config: DedupConfig) -> Inventory:
    """List the images of the source and publish the inventory."""
    source_url = storage.absolute_url(config.source_url)
    workspace_url = storage.absolute_url(config.workspace_url)
    if is_below(source_url, workspace_url):
        raise SourceError(f"the source {source_url} lies in the workspace {workspace_url}")
    files = storage.list_files(source_url)
    ignored: Counter[str] = Counter()
    table = inventory_table(
        select_images(files, config.source, workspace_url, ignored), config.source
    )
    table = table.replace_schema_metadata(
        {"source_url": source_url, "num_ignored": json.dumps(dict(sorted(ignored.items())))}
    )
    listing = rows_digest(table, ["image_id", "camera", "captured_at"])
    night_id = f"{slug(source_url)}-{fingerprint(source_url, listing, ignored)}"
    url = storage.join(workspace_url, "nights", night_id, "inventory.parquet")
    storage.publish_table(url, table)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(ignored.items())) or "none"
    logger.info("listed %d images of %s (left out: %s)", table.num_rows, source_url, left_out)
    return Inventory(url=url, night_id=night_id, num_images=table.num_rows)


def select_images(
    files: Iterable[StoredFile],
    settings: SourceSettings,
    workspace_url: str,
    ignored: Counter[str],
) -> Iterator[StoredFile]:
    """Pass on the files that are images of the run.

    Args:
        files: The listing.
        settings: Which file names count.
        workspace_url: A workspace inside the source is not part of it.
        ignored: Counts the files left out, by reason.
    """
    for file in files:
        if is_below(file.url, workspace_url):
            continue  # not counted: every run adds to it, and equal nights have equal counts
        reason = reason_to_ignore(file, settings)
        if reason is None:
            yield file
        else:
            ignored[reason] += 1


def reason_to_ignore(file: StoredFile, settings: SourceSettings) -> str | None:
    """Say why a file is no image of the run, or None when it is one."""
    name = file.relative_path.lower()
    # Inside the source a link leads to an image that is listed anyway, elsewhere to one that
    # is not ours; and a link must never count as the living twin of the file it points to.
    if not file.is_regular:
        return "links or devices"
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    if name.endswith(PARTIAL_SUFFIXES):
        return "partial"
    if settings.suffixes and not name.endswith(settings.suffixes):
        return "other suffixes"
    return None


def inventory_table(files: Iterable[StoredFile], settings: SourceSettings) -> pa.Table:
    """Write one row per image, sorted as the files are.

    Returns:
        A table of `schemas.INVENTORY`.
    """
    rows = [
        {
            "image_id": image_id(file.url, file.size_bytes, file.etag),
            "url": file.url,
            "size_bytes": file.size_bytes,
            "etag": file.etag,
            "camera": partition_of(file.relative_path, settings.partition_by)
            if file.is_name_valid
            else "",
            "captured_at": file.modified_at,
            "error": None if file.is_name_valid else INVALID_NAME,
        }
        for file in files
    ]
    return pa.Table.from_pylist(rows, schema=INVENTORY)


def image_id(url: str, size_bytes: int, etag: str) -> str:
    """Name an image; a file that was overwritten is another image.

    Returns:
        32 hexadecimal digits of a SHA-256.
    """
    return hashlib.sha256("\0".join([url, str(size_bytes), etag]).encode()).hexdigest()[:32]


def partition_of(relative_path: str, partition_by: str | None) -> str:
    """Name the partition of a path: the first group of the expression, else its whole match.

    Returns:
        The empty string without an expression or a match.
    """
    match = re.search(partition_by, relative_path) if partition_by else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def is_below(url: str, folder_url: str) -> bool:
    """Tell whether a URL is a folder or lies anywhere in it."""
    return url == folder_url or url.startswith(storage.as_folder(folder_url))


def slug(url: str) -> str:
    """The last folder of a URL in characters that are safe in any path, at most 40 of them."""
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "_", url.rstrip("/").rpartition("/")[2])[:40].strip("._")
        or "source"
    )


def rows_digest(table: pa.Table, columns: list[str]) -> str:
    """Digest the values of some columns, row by row.

    Returns:
        12 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
        digest.update(json.dumps([str(value) for value in row]).encode())
    return digest.hexdigest()[:12]
