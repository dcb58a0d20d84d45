"""Stage 4b: which images of the night the library has already, or has a twin of."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig, parse_duration
from tasks import blas, storage
from tasks.cells import named_ranges, open_features, partition_ranges
from tasks.comparisons import (
    COLUMNS_AT_ONCE,
    ROWS_AT_ONCE,
    Eps,
    Features,
    are_within,
    pair_distances,
)
from tasks.feature_store import same_values
from tasks.library import ROWS_PER_GROUP, features_of, iterate_segments
from tasks.partitions import eps_of
from tasks.references import Collection, Library, Matches
from tasks.schemas import FEATURE_DIM, IMAGES, LIBRARY, MATCHES
from tasks.stage import stage
from tasks.stage04_collect_features import write_matrix
from tasks.verdicts import read_heeded

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_IDENTITY = [name for name in LIBRARY.names if name != "feature"]


@stage("match_library")
def match_library(
    library: Library, collection: Collection, config: DedupConfig
) -> tuple[Matches, Collection]:
    """Publish the twins that earlier nights kept, and the collection of the images without one."""
    images = storage.read_table(collection.images_url, IMAGES)
    items = images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")
    features = open_features(collection.features_url)
    known = find_known(library, items)
    is_known = np.array([image_id in known for image_id in items["image_id"].to_pylist()], bool)
    with blas.one_thread():
        twins = find_twins(
            library,
            features,
            items,
            is_known=is_known,
            eps=eps_of(items["camera"], config),
            not_before=horizons(items, config),
        )
    scenes = read_heeded(collection.heeded).scenes
    table = match_table(known, find_scene_twins(features, items, is_known, scenes) | twins)
    url = storage.join(collection.run_url, "matches.parquet")
    storage.publish_table(url, table)
    logger.info("%d images are in the library, %d more have a twin there", len(known), len(twins))
    matches = Matches(url=url, num_known=len(known), num_matched=len(twins))
    return matches, without(collection, images, table["image_id"])


def horizons(items: pa.Table, config: DedupConfig) -> pa.Array:
    """Find the time before which the library does not count, for each image.

    It is a window before the first image of the partition.

    Args:
        items: Columns `camera` and `captured_at` of `schemas.IMAGES`, a partition side by side.
        config: The window of each partition.

    Returns:
        `(N,)` timestamps, null without a window.
    """
    found, num_items = [], []
    for name, (start, stop) in named_ranges(items["camera"]).items():
        window = config.of_partition(name).window
        first = pc.min(items["captured_at"].slice(start, stop - start)).as_py()
        found.append(None if window is None else first - parse_duration(window))
        num_items.append(stop - start)
    each = np.repeat(np.arange(len(found)), num_items)
    return pa.array(found, items.schema.field("captured_at").type).take(pa.array(each, pa.int64()))


def find_known(library: Library, items: pa.Table) -> dict[str, Row]:
    """Find the images that are in the library themselves, even in another view than now.

    Args:
        library: What earlier nights kept.
        items: Rows of `schemas.IMAGES`.

    Returns:
        Their rows there, by image_id; that of the view of now, if there is one.
    """
    columns = (items[name].to_pylist() for name in ("image_id", "view"))
    view_of = dict(zip(*columns, strict=True))
    found: dict[str, Row] = {}
    for rows in iterate_segments(library, _IDENTITY):
        is_ours = pc.is_in(rows["image_id"], value_set=items["image_id"])
        for row in rows.filter(is_ours).to_pylist():
            image_id, is_view = row["image_id"], row["view"] == view_of[row["image_id"]]
            if image_id not in found or (is_view and found[image_id]["view"] != row["view"]):
                found[image_id] = row
    return found


def find_twins(
    library: Library,
    features: Features,
    items: pa.Table,
    *,
    is_known: NDArray[np.bool_],
    eps: Eps,
    not_before: pa.Array | None = None,
) -> dict[str, Row]:
    """Find for each image the nearest one that an earlier night kept, by comparing all.

    Of equally near ones it is an image of this night, or else the one that was kept first. Only
    images of one partition, one view and one kind of store are compared: nothing could look after a
    twin on another. Images of the night are in the partition that the night puts them in.

    Args:
        library: What earlier nights kept.
        features: `(N, 512)` float32 of unit length.
        items: Rows of `schemas.IMAGES`, in the order of the features.
        is_known: `(N,)` images that need no twin.
        eps: Largest cosine distance of a twin, for all images or for each; equal in a partition.
        not_before: `(N,)` earliest times at which a twin may have been captured, equal in a
            partition, null for any; None for any of all.

    Returns:
        Rows of the library with the `distance`, by the image_id of the image.
    """
    best = np.full(len(features), np.inf, np.float32)
    twin_of: dict[int, Row] = {}
    ranges = named_ranges(items["camera"])
    eps_of_each = np.broadcast_to(eps, len(features))
    is_ours = pa.array(list(ranges), pa.string())
    views = items["view"].take(pa.array([start for start, _ in ranges.values()], pa.int64()))
    known = known_rows(features, items, np.flatnonzero(is_known))
    for candidates in chain(known, strange_rows(library, items)):
        camera = pc.index_in(candidates["camera"], value_set=is_ours)
        is_seen_alike = same_values(candidates["view"], views.take(camera))
        rows = candidates.filter(pc.and_(pc.is_valid(camera), is_seen_alike))
        for first, last in partition_ranges(rows["camera"].combine_chunks()):
            of_camera = rows.slice(first, last - first)
            start, stop = ranges[of_camera["camera"][0].as_py()]
            if not_before is not None and not_before[start].is_valid:
                is_recent = pc.greater_equal(of_camera["captured_at"], not_before[start])
                of_camera = of_camera.filter(is_recent)
            wanted = start + np.flatnonzero(~is_known[start:stop])
            distances, positions = nearest_within(
                features[wanted], features_of(of_camera), eps=float(eps_of_each[start])
            )
            is_nearer = distances < best[wanted]
            best[wanted[is_nearer]] = distances[is_nearer]
            kept = of_camera.select(_IDENTITY).take(pa.array(positions[is_nearer]))
            twin_of |= zip(wanted[is_nearer].tolist(), kept.to_pylist(), strict=True)
    names = items["image_id"].to_pylist()
    return {names[item]: row | {"distance": best[item]} for item, row in sorted(twin_of.items())}


def find_scene_twins(
    features: Features,
    items: pa.Table,
    is_known: NDArray[np.bool_],
    scenes: Iterable[Sequence[str]],
) -> dict[str, Row]:
    """Find the images that show one scene with an image that stays, as a person said, however far.

    Args:
        features: `(N, 512)` float32 of unit length.
        items: Rows of `schemas.IMAGES`, in the order of the features.
        is_known: `(N,)` images of the night that the library has.
        scenes: Groups of contents that show one scene.

    Returns:
        Rows of the nearest such image of the same partition, with the `distance`, by image_id.
    """
    found: dict[str, Row] = {}
    for scene in scenes:
        is_of_scene = pc.is_in(items["sha256"], value_set=pa.array(scene)).to_numpy()
        stays = np.flatnonzero(is_of_scene & is_known)
        for item in np.flatnonzero(is_of_scene & ~is_known).tolist():
            cameras = items["camera"].take(pa.array(stays))
            near = stays[pc.equal(cameras, items["camera"][item]).to_numpy()]
            if not len(near):
                continue
            distances = pair_distances(features, features, np.full(len(near), item), near)
            at = int(distances.argmin())
            row = items.select(_IDENTITY).slice(int(near[at]), 1).to_pylist()[0]
            found[items["image_id"][item].as_py()] = row | {"distance": distances[at]}
    return found


def known_rows(features: Features, items: pa.Table, known: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Give the images of the night that the library has, as rows of `schemas.LIBRARY`."""
    for start in range(0, len(known), ROWS_PER_GROUP):
        some = known[start : start + ROWS_PER_GROUP]
        rows = items.take(pa.array(some)).select(_IDENTITY).replace_schema_metadata(None)
        feature = pa.FixedSizeListArray.from_arrays(features[some].ravel(), FEATURE_DIM)
        yield rows.append_column("feature", feature).select(LIBRARY.names).cast(LIBRARY)


def strange_rows(library: Library, items: pa.Table) -> Iterator[pa.Table]:
    """Read the rows of the library that are no images of the night but may be twins of some."""
    scheme = items["url"][0].as_py().partition("://")[0] if items.num_rows else ""
    for segment in iterate_segments(library, LIBRARY.names):
        is_known = pc.is_in(segment["image_id"], value_set=items["image_id"])
        yield segment.filter(pc.and_not(pc.starts_with(segment["url"], f"{scheme}://"), is_known))


def nearest_within(
    a: Features, b: Features, *, eps: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the nearest row of another matrix that is within eps, by exact distance.

    Args:
        a: `(R, D)` float32 of unit length.
        b: `(C, D)` likewise.
        eps: Largest cosine distance.

    Returns:
        `(R,)` float32 distances, infinite where no row is within eps, and `(R,)` int64 rows of
        `b`, the first of equally near ones.
    """
    best = np.full(len(a), np.inf, np.float32)
    position = np.zeros(len(a), np.int64)
    for row in range(0, len(a), ROWS_AT_ONCE):
        rows = a[row : row + ROWS_AT_ONCE]
        for column in range(0, len(b), COLUMNS_AT_ONCE):
            columns = b[column : column + COLUMNS_AT_ONCE]
            i, j = np.nonzero(are_within(rows, columns, eps))
            distances = pair_distances(rows, columns, i, j)
            # The last assignment to a row stands, so the nearest and then the first comes last.
            order = np.lexsort((j, distances))[::-1]
            i, j, distances = i[order], j[order], distances[order]
            nearest = np.full(len(rows), np.inf, np.float32)
            at = np.zeros(len(rows), np.int64)
            nearest[i], at[i] = distances, column + j
            is_nearer = nearest < best[row : row + len(rows)]
            best[row : row + len(rows)][is_nearer] = nearest[is_nearer]
            position[row : row + len(rows)][is_nearer] = at[is_nearer]
    return best, position


def match_table(known: dict[str, Row], twins: dict[str, Row]) -> pa.Table:
    """Write what was found as a table of `schemas.MATCHES`, sorted by image_id.

    A known image is its own keeper, without a distance.
    """
    rows = [
        {"image_id": image_id, "distance": row.get("distance")}
        | {
            f"keeper_{name}": row[name]
            for name in ("image_id", "url", "size_bytes", "etag", "sha256", "view")
        }
        for image_id, row in sorted((known | twins).items())
    ]
    return pa.Table.from_pylist(rows, MATCHES)


def without(collection: Collection, images: pa.Table, image_ids: pa.ChunkedArray) -> Collection:
    """Publish the collection of the images that the library says nothing of.

    Args:
        collection: All images of the run.
        images: Its table of `schemas.IMAGES`.
        image_ids: The images that are settled.

    Returns:
        The same collection where none are; else one in which they have no item.
    """
    if not len(image_ids):
        return collection
    is_new = pc.invert(pc.is_in(images["image_id"], value_set=image_ids))
    old_items = images["item_id"].filter(pc.and_(is_new, pc.is_valid(images["item_id"])))
    order = np.sort(old_items.to_numpy())
    item_of = np.full(collection.num_items + 1, -1, np.int32)
    item_of[order] = np.arange(len(order))
    items = item_of[pc.fill_null(images["item_id"], collection.num_items).to_numpy()]
    position = images.column_names.index("item_id")
    images = images.set_column(position, "item_id", pa.array(items, mask=items < 0))
    cameras = images.filter(pc.is_valid(images["item_id"]))["camera"]
    fresh = replace(
        collection,
        images_url=storage.join(collection.run_url, "new-images.parquet"),
        features_url=storage.join(collection.run_url, "new-features.npy"),
        num_items=len(order),
        largest_partition=pc.max(pc.value_counts(cameras).field("counts")).as_py() or 0,
    )
    features = open_features(collection.features_url)
    blocks = (
        (np.arange(start, min(start + ROWS_AT_ONCE, len(order)), dtype=np.int32), start)
        for start in range(0, len(order), ROWS_AT_ONCE)
    )
    storage.publish_table(fresh.images_url, images)
    storage.publish(
        fresh.features_url,
        lambda path: write_matrix(
            path,
            len(order),
            ((at, features[order[start : start + ROWS_AT_ONCE]]) for at, start in blocks),
        ),
    )
    return fresh
