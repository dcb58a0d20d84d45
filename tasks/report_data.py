"""What the report shows of the images: rows and groups, as scripts that its page loads on demand.

A page that was opened from a disk may not fetch anything, but it may load scripts. So each piece of
data is a script that calls one function of the page's own script with JSON.
"""

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks import storage
from tasks.distances import similarity_percent
from tasks.paths import as_folder
from tasks.schemas import IMAGES

ROWS_PER_SCRIPT = 50
"""Images whose thumbnails come in one script: some 300 KB."""

PATHS_PER_SCRIPT = 50_000
"""Paths that come in one script, for a filter that looks at all of them."""

_WRITERS = 8

_SHOWN = [
    *("path", "captured_at", "size_bytes", "width", "height", "sharpness"),
    *("action", "reason", "keeper", "similarity", "is_elsewhere"),
]


class ThumbnailFile:
    """Thumbnails of a report's rows, in a temporary file: those of a million fill gigabytes."""

    def __init__(self, num_rows: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="dedup-thumbnails-")  # noqa: SIM115 (closed at exit)
        self._start = np.zeros(num_rows, np.int64)
        self._length = np.zeros(num_rows, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, rows: NDArray[np.int64], thumbnails: list[bytes]) -> None:
        """Keep the thumbnails of some rows; all must be kept before the first is got."""
        lengths = np.fromiter(map(len, thumbnails), np.int64, len(thumbnails))
        self._start[rows] = self._file.tell() + np.cumsum(lengths) - lengths
        self._length[rows] = lengths
        self._file.write(b"".join(thumbnails))
        self._file.flush()

    def get(self, row: int) -> bytes | None:
        """The thumbnail of a row, None when it has none; for several threads at once."""
        content = os.pread(self._file.fileno(), int(self._length[row]), int(self._start[row]))
        return content or None


def report_rows(manifest: pa.Table, images: pa.Table, source_url: str) -> pa.Table:
    """Lay out the images of all groups in the order in which the report shows them.

    The largest group comes first; in a group its keepers, then what goes. The weakest similarity
    comes first, and so does the keeper that it is to.

    Args:
        manifest: Table of `schemas.MANIFEST`, sorted by URL.
        images: Table of `schemas.IMAGES` that knows every URL of the manifest.
        source_url: The source of the images of the night; keepers of earlier nights are shown like
            others, but with their whole URL.

    Returns:
        One row per image of a group: `image_id`, `url`, `cluster_id`, `partition`, and what a page
        shows of it: `path` (below the source), `captured_at` (text, UTC), `size_bytes`, `width`,
        `height`, `sharpness`, `action`, `reason`, `keeper` (row of its keeper, null when kept),
        `similarity` (to the keeper, in percent with two decimals, null when kept) and
        `is_elsewhere` (a keeper of an earlier night: `path` is its URL).
    """
    grouped = manifest.filter(pc.greater_equal(manifest["cluster_id"], 0))
    rows = grouped.take(pa.array(_order(grouped)))
    known = images.take(pc.index_in(rows["url"], value_set=images["url"]))
    path = paths_below(rows["url"], source_url)
    similarity = pc.round(similarity_percent_of(rows["distance"]), ndigits=2)
    captured_at = pc.cast(known["captured_at"], pa.timestamp("s", "UTC"), safe=False)
    return pa.table(
        {
            "image_id": known["image_id"],
            **{name: rows[name] for name in ("url", "cluster_id")},
            "partition": partition_names(known["camera"], path),
            "path": path,
            "captured_at": pc.strftime(captured_at, format="%Y-%m-%d %H:%M:%S"),
            "size_bytes": rows["size_bytes"],
            "width": known["width"],
            "height": known["height"],
            "sharpness": pc.round(pc.cast(known["sharpness"], pa.float64()), ndigits=4),
            "action": pc.if_else(pc.equal(rows["action"], "library"), "keep", rows["action"]),
            "reason": rows["reason"],
            "keeper": pc.index_in(rows["keeper_url"], value_set=rows["url"]),
            "similarity": similarity,
            "is_elsewhere": pc.equal(rows["action"], "library"),
        }
    )


def _order(grouped: pa.Table) -> NDArray[np.int64]:
    labels = grouped["cluster_id"].to_numpy()
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    is_removed = pc.equal(grouped["action"], "remove").to_numpy()
    distance = pc.fill_null(grouped["distance"], 0).to_numpy()
    keeper = pc.index_in(grouped["keeper_url"], value_set=grouped["url"]).filter(is_removed)
    farthest = np.where(is_removed, distance, 0)
    np.maximum.at(farthest, keeper.to_numpy(), distance[is_removed])
    return np.lexsort((-farthest, is_removed, labels, -sizes[group]))


def similarity_percent_of(distances: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cosine similarity in percent of many distances; null stays null."""
    values = similarity_percent(pc.fill_null(pc.cast(distances, pa.float64()), 0).to_numpy())
    return pa.chunked_array([pa.array(values, mask=distances.is_null().to_numpy())])


def with_earlier_images(images: pa.Table, matches: pa.Table) -> pa.Table:
    """Add the keepers of earlier nights, of which less is known.

    Args:
        images: Table of `schemas.IMAGES`.
        matches: Table of `schemas.MATCHES`.
    """
    is_strange = pc.invert(pc.is_in(matches["keeper_url"], value_set=images["url"]))
    strange = matches.filter(is_strange)
    first = pc.index_in(pc.unique(strange["keeper_url"]), value_set=strange["keeper_url"])
    keepers = strange.take(first)
    # Images are only compared within a partition, so it is that of any of them.
    of_image = pc.index_in(keepers["image_id"], value_set=images["image_id"])
    known = {
        "image_id": keepers["keeper_image_id"],
        "url": keepers["keeper_url"],
        "size_bytes": keepers["keeper_size_bytes"],
        "etag": keepers["keeper_etag"],
        "sha256": keepers["keeper_sha256"],
        "camera": images["camera"].take(of_image),
    }
    unknown = [pa.field(field.name, field.type) for field in IMAGES]
    columns = [known.get(field.name, pa.nulls(keepers.num_rows, field.type)) for field in unknown]
    loose = pa.schema(unknown)
    return pa.concat_tables(
        [images.replace_schema_metadata(None).cast(loose), pa.table(columns, schema=loose)]
    )


def paths_below(urls: pa.ChunkedArray, source_url: str) -> pa.ChunkedArray:
    """The parts of URLs below the source; a URL that is not below it stays whole."""
    folder = as_folder(source_url)
    below = pc.utf8_slice_codeunits(urls, len(folder))
    return pc.if_else(pc.starts_with(urls, folder), below, urls)


def partition_names(cameras: pa.ChunkedArray, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Name what a person tells images apart by: their partition, else their first folder."""
    folder = pc.if_else(
        pc.match_substring(paths, "/"), pc.replace_substring_regex(paths, "(?s)/.*", ""), ""
    )
    return pc.if_else(pc.equal(cameras, ""), folder, cameras)


def group_columns(rows: pa.Table) -> dict[str, Any]:
    """What a page must know of all groups to sort and filter them.

    Args:
        rows: Table of `report_rows`.

    Returns:
        `partitions`, the names, sorted; and columns of one value per group: `cluster_id`, `first`
        (its first row), `images`, `removed`, `weakest` (smallest similarity to a keeper in percent,
        None where nothing goes), `partition` (number of the name, that of the first row).
    """
    labels = rows["cluster_id"].to_numpy()
    first = np.flatnonzero(np.diff(labels, prepend=-1))
    is_removed = pc.equal(rows["action"], "remove").to_numpy()
    ends = np.append(first[1:], len(labels))
    removed = np.add.reduceat(is_removed.astype(np.int64), first) if len(first) else first
    weakest = rows["similarity"].take(pa.array(np.minimum(ends - removed, ends - 1)))
    names = rows["partition"].take(pa.array(first))
    partitions = sorted(names.unique().to_pylist())
    return {
        "partitions": partitions,
        "cluster_id": labels[first].tolist(),
        "first": first.tolist(),
        "images": (ends - first).tolist(),
        "removed": removed.tolist(),
        "weakest": weakest.to_pylist(),
        "partition": pc.index_in(names, value_set=pa.array(partitions, pa.string())).to_pylist(),
    }


def as_script(function: str, *arguments: object) -> bytes:
    """Write a call of one of the page's functions, harmless wherever it is put.

    Args:
        function: Its name.
        arguments: Anything JSON can write.
    """
    # All that is not ASCII is escaped, so no line separator ends a string early; and "<" is, so
    # that no name ends a script or begins a comment.
    written = ",".join(json.dumps(argument, separators=(",", ":")) for argument in arguments)
    return f"{function}({written});\n".replace("<", "\\u003c").encode("ascii")


def data_scripts(
    rows: pa.Table, thumbnails: ThumbnailFile
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name the scripts of a report, each with a function that writes it.

    Args:
        rows: Table of `report_rows`.
        thumbnails: The thumbnails of these rows.

    Yields:
        Its path below the report, and what gives its content.
    """
    yield "data/groups.js", lambda: as_script("report.groups", group_columns(rows))
    for number in range(-(-rows.num_rows // PATHS_PER_SCRIPT)):
        yield f"data/paths-{number:06}.js", partial(paths_script, rows, number)
    for number in range(-(-rows.num_rows // ROWS_PER_SCRIPT)):
        yield f"data/rows-{number:06}.js", partial(rows_script, rows, number, thumbnails)


def paths_script(rows: pa.Table, number: int) -> bytes:
    """Write the paths of one script."""
    paths = rows["path"].slice(number * PATHS_PER_SCRIPT, PATHS_PER_SCRIPT)
    return as_script("report.paths", number, paths.to_pylist())


def rows_script(rows: pa.Table, number: int, thumbnails: ThumbnailFile) -> bytes:
    """Write the rows of one script, with their thumbnails as data URLs."""
    start = number * ROWS_PER_SCRIPT
    shown = rows.select(_SHOWN).slice(start, ROWS_PER_SCRIPT).to_pylist()
    for row, values in enumerate(shown, start):
        values["thumbnail"] = data_url(thumbnails.get(row))
    return as_script("report.rows", number, shown)


def data_url(jpeg: bytes | None) -> str | None:
    """A picture as a URL that holds it."""
    if jpeg is None:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def publish_scripts(folder_url: str, rows: pa.Table, thumbnails: ThumbnailFile) -> None:
    """Publish all scripts of a report, several at a time, because a bucket takes its time."""

    def publish(script: tuple[str, Callable[[], bytes]]) -> None:
        path, content = script
        storage.publish_bytes(storage.join(folder_url, path), content())

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(publish, data_scripts(rows, thumbnails)))
