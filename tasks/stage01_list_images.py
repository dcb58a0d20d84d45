"""Stage 1: list the source and write down what there is."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig, SourceSettings, parse_duration
from tasks import storage
from tasks.errors import SourceError
from tasks.paths import is_below, partition_of, slug
from tasks.references import Inventory
from tasks.schemas import INVENTORY, fingerprint
from tasks.stage import stage
from tasks.storage import StoredFile
from tasks.stores import HIDDEN_PREFIX

logger = logging.getLogger(__name__)

PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Endings of files that somebody is still writing."""

UNSETTLED = "too new"
"""Why a file is left to the next night."""

_ROWS_PER_DIGEST_STEP = 10_000

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
    images = select_images(files, config.source, workspace_url, ignored)
    if config.source.settle != "0s":
        images = settled_images(images, config.source, datetime.now(UTC), ignored)
    table = inventory_table(images, config.source)
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
        # Not counted: they come and go, and equal nights have equal counts.
        is_ours = file.relative_path.rpartition("/")[2].startswith(HIDDEN_PREFIX)
        if is_ours or is_below(file.url, workspace_url):
            continue
        reason = reason_to_ignore(file, settings)
        if reason is None:
            yield file
        else:
            ignored[reason] += 1


def settled_images(
    files: Iterable[StoredFile], settings: SourceSettings, present: datetime, ignored: Counter[str]
) -> Iterator[StoredFile]:
    """Pass on the files that nobody is writing to any more.

    Args:
        files: Files that are images of the run.
        settings: How long a file may be written to.
        present: The present time.
        ignored: Counts the files left out.
    """
    last = present - parse_duration(settings.settle)
    for file in files:
        if file.modified_at <= last:
            yield file
        else:
            ignored[UNSETTLED] += 1


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
    files = list(files)
    columns = {
        "image_id": [image_id(file.url, file.size_bytes, file.etag) for file in files],
        "url": [file.url for file in files],
        "size_bytes": [file.size_bytes for file in files],
        "etag": [file.etag for file in files],
        "camera": [
            partition_of(file.relative_path, settings.partition_by) if file.is_name_valid else ""
            for file in files
        ],
        "captured_at": [file.modified_at for file in files],
        "error": [None if file.is_name_valid else INVALID_NAME for file in files],
    }
    return pa.table(columns, INVENTORY)


def image_id(url: str, size_bytes: int, etag: str) -> str:
    """Name an image; a file that was overwritten is another image.

    Returns:
        32 hexadecimal digits of a SHA-256.
    """
    return hashlib.sha256("\0".join([url, str(size_bytes), etag]).encode()).hexdigest()[:32]


def rows_digest(table: pa.Table, columns: list[str]) -> str:
    """Digest the values of some columns, row by row.

    Returns:
        12 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for batch in table.select(columns).to_batches(max_chunksize=_ROWS_PER_DIGEST_STEP):
        for row in zip(*(_as_text(column).to_pylist() for column in batch.columns), strict=True):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:12]


def _as_text(column: pa.Array) -> pa.Array:
    """Values as `str` writes them, at Arrow's speed."""
    text = pc.fill_null(pc.cast(column, pa.string()), "None")
    if pa.types.is_timestamp(column.type):
        text = pc.replace_substring_regex(text, r"(\.000000)?Z$", "+00:00")
    return text
