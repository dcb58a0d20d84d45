"""Merges the many small files of a feature store into a few large ones, beside running nights.

A merged file appears before what it replaces goes, and what goes has been read back from it. So a
reader that lists the store again when it is done (`feature_store.read_store`) sees every row,
whatever is killed when.

Two compactions at a time are harmless. A file is named by its rows, and a row only ever gives way
to one that `best_rows` prefers; so of two files that each hold what the other replaces, both have
the same rows, which is to say the same name, and a file is never deleted for its own sake.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tasks import storage
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.feature_store import MAX_READERS, best_rows
from tasks.references import Compaction
from tasks.schemas import FEATURE_DIM, FEATURES, SCHEMA_VERSION
from tasks.stores import FileState, store_of

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 32_768
"""Rows of a merged file: 64 MiB of features and about twice that of thumbnails. A file of half as
many is left as it is."""

ROWS_PER_GROUP = 8_192
"""Rows that a reader has in memory at a time, and need not decode when it wants none of them."""


@dataclass(frozen=True)
class SmallFile:
    """A feature file that is worth merging, in the state it was seen in."""

    url: str
    state: FileState
    metadata: tuple[tuple[str, str], ...]
    """All that it says of itself: rows of different decoders stay apart."""
    num_rows: int
    first_url: str
    """The first of its images: files whose images lie side by side are merged."""


def compact_features(workspace_url: str) -> list[Compaction]:
    """Merge the small files of every feature store of a workspace.

    Raises:
        StorageError: The workspace is neither on a local disk nor on S3.
        ArtifactError: A feature file is damaged.
    """
    features_url = storage.join(storage.absolute_url(workspace_url), "features")
    return [compact_store(url) for url in storage.list_names(features_url)]


def compact_store(store_url: str, rows_per_file: int = ROWS_PER_FILE) -> Compaction:
    """Merge the small files of one feature store.

    Args:
        store_url: Folder of feature files.
        rows_per_file: Rows of a merged file, about.
    """
    urls = storage.list_parquet(store_url)
    with ThreadPoolExecutor(MAX_READERS) as pool:
        files = pool.map(partial(look_at, store_url), urls)
        small = [file for file in files if file and 2 * file.num_rows < rows_per_file]
        for batch in batches(small, rows_per_file):
            merge(batch, store_url, pool)
    return Compaction(store_url, len(urls), len(storage.list_parquet(store_url)))


def look_at(store_url: str, url: str) -> SmallFile | None:
    """Look at a feature file; None when it is gone, none of this store's, or of another release."""
    try:
        state = store_of(url).stat(url)
        with storage.open_table(url, FEATURES) as table:
            is_ours = store_url.endswith(f"/{table.metadata.get('fingerprint')}")
            is_known = table.metadata.get("schema_version") == str(SCHEMA_VERSION)
            if state is None or not is_ours or not is_known or not table.num_rows:
                return None
            first_url = pc.min(table.read(0, ["url"])["url"]).as_py()
            metadata = tuple(sorted(table.metadata.items()))
            return SmallFile(url, state, metadata, table.num_rows, first_url)
    except MissingArtifactError:
        return None


def batches(files: Iterable[SmallFile], rows_per_file: int) -> Iterator[list[SmallFile]]:
    """Say which files become one: of one kind, side by side, and enough for a large file."""
    ordered = sorted(files, key=lambda file: (file.metadata, file.first_url, file.url))
    for _, of_one_kind in itertools.groupby(ordered, key=lambda file: file.metadata):
        batch: list[SmallFile] = []
        num_rows = 0
        for file in of_one_kind:
            batch.append(file)
            num_rows += file.num_rows
            if num_rows >= rows_per_file:
                yield batch
                batch, num_rows = [], 0
        yield batch


def merge(files: Sequence[SmallFile], store_url: str, pool: Executor) -> None:
    """Publish the rows of some files as one file and delete what it replaces.

    Raises:
        ArtifactError: What was published is not what was read back; nothing was deleted.
    """
    found = list(pool.map(read_rows, (file.url for file in files)))
    # Somebody else who compacts may have been faster with some of them.
    files = [file for file, rows in zip(files, found, strict=True) if rows is not None]
    if len(files) < 2:
        return
    rows = merged_rows([rows for rows in found if rows is not None])
    name = content_digest(rows)
    url = storage.join(store_url, f"merged-{name}.parquet")
    storage.publish_table(url, rows, rows_per_group=ROWS_PER_GROUP)
    if content_digest(storage.read_table(url, FEATURES)) != name:
        raise ArtifactError(f"expected the rows that were published, found others: {url}")
    replaced = [file for file in files if file.url != url]
    # A shard that is embedded again replaces its file; then the state is another, and it stays.
    list(pool.map(lambda file: store_of(file.url).discard(file.url, file.state), replaced))
    logger.info("merged %d feature files of %s", len(files), store_url)


def read_rows(url: str) -> pa.Table | None:
    """Read a feature file, or None when it is gone."""
    try:
        return storage.read_table(url, FEATURES)
    except MissingArtifactError:
        return None


def merged_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Bring the rows of several files together, one for each image.

    Args:
        tables: Tables of `schemas.FEATURES`, with equal metadata.

    Returns:
        A table of `schemas.FEATURES` with their metadata, sorted by URL; it depends on the rows
        alone, not on how many tables they came in.
    """
    rows = pa.concat_tables(tables)
    rows = rows.append_column("digest", feature_digests(rows))
    best = best_rows(rows, tie_break="digest").drop_columns("digest")
    # A night lies together, and readers skip the row groups that hold nothing of theirs.
    return best.sort_by([("url", "ascending"), ("image_id", "ascending")])


def feature_digests(rows: pa.Table) -> pa.Array:
    """Digest each feature: 64 hexadecimal digits, or null where there is none."""
    feature = rows["feature"].combine_chunks()
    values = feature.flatten().to_numpy().reshape(-1, FEATURE_DIM)
    digests = pa.array(
        [hashlib.sha256(value.tobytes()).hexdigest() for value in values], pa.string()
    )
    has_feature = pc.is_valid(feature)
    position = pc.subtract(pc.cumulative_sum(pc.cast(has_feature, pa.int64())), 1)
    return digests.take(pc.if_else(has_feature, position, None))


def content_digest(rows: pa.Table) -> str:
    """Digest all rows and the metadata of a feature file, however they are stored.

    Returns:
        32 hexadecimal digits of a SHA-256.
    """
    metadata = {key.decode(): value.decode() for key, value in rows.schema.metadata.items()}
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in FEATURES.names:
        digest.update(json.dumps(_plain_values(rows, name)).encode())
    return digest.hexdigest()[:32]


def _plain_values(rows: pa.Table, name: str) -> list[object]:
    if name == "feature":
        return feature_digests(rows).to_pylist()  # type: ignore[no-any-return]
    values = rows[name].to_pylist()
    if name == "thumbnail":
        return [value and hashlib.sha256(value).hexdigest() for value in values]
    return values  # type: ignore[no-any-return]
