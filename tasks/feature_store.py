"""The feature store: a folder of Parquet files for each way of turning an image into a feature."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig, FeatureSettings
from tasks import storage
from tasks.change_gate import FRAMES_PER_CHAIN
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.images import DECODER
from tasks.schemas import FEATURE_DIM, FEATURES, SCHEMA_VERSION, fingerprint
from tasks.vgg16_openvino import QUANTIZATION_DIGEST
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

STAGE_VERSION = 1
"""Raised when the code turns the same bytes into another feature."""

GONE = "file is gone"
"""Error of an image that vanished between listing and reading. It is looked for again next time."""

LEARNED = [
    *("image_id", "view", "background", "sha256", "width", "height", "sharpness", "error"),
    *("stands_on", "gate_error"),
]
"""The columns of `schemas.FEATURES` that no inventory has, without feature and thumbnail. An image
has a row for each view that it was looked at in."""

_GATE = "gate"
_KEY = LEARNED[:2]

MAX_READERS = 16
"""Files read at a time, because a bucket's answer takes its time."""

MAX_BYTES_AHEAD = 64 * 2**20
"""Size of the files read at a time, because all of each may be in memory."""


def feature_fingerprint(settings: FeatureSettings) -> str:
    """Name everything that shapes a feature: weights, settings, 8-bit ranges and code."""
    shaping = settings.model_dump(mode="json")
    if settings.pooling != "gem":
        del shaping["gem_p"]
    if settings.dtype == "int8":
        shaping["quantization"] = QUANTIZATION_DIGEST
    return fingerprint(WEIGHTS_DIGEST, shaping, STAGE_VERSION, SCHEMA_VERSION)


def store_url(workspace_url: str, settings: FeatureSettings) -> str:
    """The folder of the feature files that these settings give."""
    return storage.join(workspace_url, "features", feature_fingerprint(settings))


def gate_name(config: DedupConfig) -> str | None:
    """Name all that decides which frame stands on which; None without a gate."""
    if not config.gate.enabled:
        return None
    shaping = config.gate.model_dump(exclude={"enabled", "max_error"})
    return fingerprint(shaping, config.source.partition_by, FRAMES_PER_CHAIN)


def feature_metadata(settings: FeatureSettings, gate: str | None = None) -> dict[str, str]:
    """What every feature file says of itself."""
    return {
        "fingerprint": feature_fingerprint(settings),
        "weights_digest": WEIGHTS_DIGEST,
        "settings": json.dumps(settings.model_dump(mode="json"), sort_keys=True),
        "decoder": DECODER,
        "schema_version": str(SCHEMA_VERSION),
        **({} if gate is None else {_GATE: gate}),
    }


def settled_image_ids(
    store: str,
    image_ids: pa.ChunkedArray,
    gate: str | None = None,
    *,
    views: pa.Array | None = None,
) -> pa.Array:
    """Those of some images that need no further look.

    They are all with a feature, and the unreadable ones that this very decoder could not read.

    Args:
        store: Folder of feature files.
        image_ids: The images asked about.
        gate: Name of the gate under which a feature may be that of another frame.
        views: Name of the view of each; by default whole images.

    Returns:
        Their image_ids, in the order of the question.
    """
    position_of = _positions_of(image_ids, views)

    def settled(table: storage.OpenTable, group: int) -> NDArray[np.int64]:
        rows = _without_strange_stand_ins(
            table.read(group, [*_KEY, "error", "stands_on"]), table.metadata, gate
        )
        is_settled = pc.is_null(rows["error"])
        if table.metadata.get("decoder") == DECODER:
            is_settled = pc.or_(is_settled, pc.fill_null(pc.not_equal(rows["error"], GONE), False))
        return _look_up(position_of, rows.filter(is_settled))

    is_settled = np.zeros(len(image_ids), bool)
    for positions in read_store(store, settled):
        is_settled[positions[positions >= 0]] = True
    return image_ids.filter(pa.array(is_settled))


def read_image_rows(
    store: str,
    image_ids: pa.ChunkedArray,
    gate: str | None = None,
    *,
    views: pa.Array | None = None,
) -> pa.Table:
    """Read all but the features of some images.

    Args:
        store: Folder of feature files.
        image_ids: The images wanted.
        gate: Name of the gate under which a feature may be that of another frame.
        views: Name of the view of each; by default whole images.

    Returns:
        A table of the columns `LEARNED`, at most one row per image: see `best_rows`.
    """
    position_of = _positions_of(image_ids, views)

    def learned(table: storage.OpenTable, group: int) -> pa.Table:
        positions = _look_up(position_of, table.read(group, _KEY))
        if (positions < 0).all():
            return nothing
        rows = table.read(group, LEARNED).filter(pa.array(positions >= 0))
        rows = _without_strange_stand_ins(rows, table.metadata, gate)
        return rows.replace_schema_metadata(None)

    nothing = FEATURES.empty_table().select(LEARNED)
    return best_rows(pa.concat_tables([nothing, *read_store(store, learned)]))


def read_gate_rows(
    store: str, image_ids: pa.ChunkedArray, gate: str | None, *, views: pa.Array | None = None
) -> pa.Table:
    """Read what a gate did with some images, even with those that were embedded after all.

    Args:
        store: Folder of feature files.
        image_ids: The images asked about.
        gate: Its name.
        views: Name of the view of each; by default whole images.

    Returns:
        A table of the columns `LEARNED`, one row per image that the gate saw.
    """
    position_of = _positions_of(image_ids, views)

    def seen(table: storage.OpenTable, group: int) -> pa.Table:
        if not _is_of(gate, table.metadata):
            return nothing
        rows = table.read(group, LEARNED)
        is_wanted = _look_up(position_of, rows) >= 0
        return rows.filter(pa.array(is_wanted)).replace_schema_metadata(None)

    nothing = FEATURES.empty_table().select(LEARNED)
    return best_rows(pa.concat_tables([nothing, *read_store(store, seen)]))


def best_rows(rows: pa.Table, *, tie_break: str | None = None) -> pa.Table:
    """Choose the row of each image, in each of its views, that has several.

    An image's own feature wins over that of the frame it stands on, a feature over an error, and
    any error over "file is gone". Among equals the values decide, so that it does not matter in
    which files the rows are, nor in which order.

    Args:
        rows: A table that has the columns `LEARNED`.
        tie_break: Another column that decides between rows that are equal in all of those.

    Returns:
        The rows that won, sorted by image_id and view.
    """
    rank = pc.case_when(
        pc.make_struct(
            pc.is_valid(rows["stands_on"]), pc.is_null(rows["error"]), pc.equal(rows["error"], GONE)
        ),
        pa.scalar(1),
        pa.scalar(0),
        pa.scalar(3),
        pa.scalar(2),
    )
    keys = [*_KEY, "rank", *LEARNED[len(_KEY) :]]
    if tie_break is not None:
        keys.append(tie_break)
    ranked = rows.append_column("rank", rank).sort_by([(key, "ascending") for key in keys])
    names = pa.array(_keys_of(ranked["image_id"], ranked["view"]), pa.string())
    is_first = pa.concat_arrays(
        [pa.array([True] * min(1, len(names)), pa.bool_()), pc.not_equal(names[1:], names[:-1])]
    )
    return ranked.drop_columns("rank").filter(is_first)


def iterate_features(
    store: str, rows: pa.Table
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Read the features of some images.

    Args:
        store: Folder of feature files.
        rows: The images wanted: rows of `read_image_rows` without an error.

    Yields:
        `(n,)` int64 positions in `rows` and their `(n, 512)` float32 features; each position once.

    Raises:
        ArtifactError: A row has no feature.
    """
    position_of = _positions_of(rows["image_id"], rows["view"])

    def features(table: storage.OpenTable, group: int) -> tuple[NDArray[np.int64], pa.Table]:
        positions = _look_up(position_of, table.read(group, _KEY))
        is_wanted = positions >= 0
        if not is_wanted.any():
            return positions[is_wanted], nothing
        found = table.read(group, [*LEARNED, "feature"]).filter(pa.array(is_wanted))
        # Of an image with several rows, the feature is that of the row that won.
        same = _is_same(found, rows.take(pa.array(positions[is_wanted])))
        has_feature = pc.and_(same, pc.is_valid(found["feature"]))
        return positions[is_wanted][has_feature.to_numpy()], found.filter(has_feature)

    nothing = FEATURES.empty_table()
    is_missing = np.ones(rows.num_rows, bool)
    for found_at, found in read_store(store, features):
        positions, first = np.unique(found_at, return_index=True)
        is_new = is_missing[positions]
        is_missing[positions] = False
        if is_new.any():
            values = found["feature"].take(pa.array(first[is_new])).combine_chunks()
            yield positions[is_new], values.flatten().to_numpy().reshape(-1, FEATURE_DIM)
    if is_missing.any():
        example = rows["image_id"][int(is_missing.argmax())]
        raise ArtifactError(
            f"expected a feature of each of {rows.num_rows} images, found none of "
            f"{is_missing.sum()}, such as {example}: {store}"
        )


def iterate_thumbnails(
    store: str, image_ids: pa.ChunkedArray
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Read the thumbnails of some images.

    Args:
        store: Folder of feature files.
        image_ids: The images wanted.

    Yields:
        `(n,)` int64 positions in `image_ids` and the JPEGs there; each position at most once. What
        was never readable has none.
    """
    position_of = _positions_of(image_ids)

    def thumbnails(table: storage.OpenTable, group: int) -> tuple[NDArray[np.int64], list[bytes]]:
        # Whatever was looked at of an image, its thumbnail shows all of it.
        names = table.read(group, ["image_id"])["image_id"].to_pylist()
        positions = _look_up_keys(position_of, names)
        if (positions < 0).all():
            return positions[:0], []
        found = table.read(group, ["thumbnail"])["thumbnail"]
        has_thumbnail = (positions >= 0) & found.is_valid().to_numpy()
        return positions[has_thumbnail], found.filter(pa.array(has_thumbnail)).to_pylist()

    is_missing = np.ones(len(image_ids), bool)
    for found_at, found in read_store(store, thumbnails):
        positions, first = np.unique(found_at, return_index=True)
        is_new = is_missing[positions]
        is_missing[positions] = False
        yield positions[is_new], [found[at] for at in first[is_new]]


def read_store(store: str, read: Callable[[storage.OpenTable, int], Result]) -> Iterator[Result]:
    """Read all files of a store, several at a time.

    The store may be compacted meanwhile: what is no longer where it was listed is in a file that a
    later listing shows. So the store is listed until that shows nothing new. A listing of very many
    files may itself miss rows that move while it is made; then the next one has them.

    Args:
        store: Folder of feature files.
        read: What to read of one row group, given by its number; called in several threads.

    Yields:
        What was read of each row group, in the order of the listings. Rows may come twice.
    """
    known: set[str] = set()
    while files := {
        url: size for url, size in storage.list_sizes(store, ".parquet").items() if url not in known
    }:
        known |= files.keys()
        for groups in _read_ahead(files, lambda url: _read_file(store, url, read)):
            yield from groups


def _read_ahead(size_of: Mapping[str, int], read: Callable[[str], Result]) -> Iterator[Result]:
    """Read files in threads, as many at a time as the limits allow, and give them in order."""
    ahead: deque[tuple[int, Future[Result]]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(MAX_READERS) as pool:
        for url, size in size_of.items():
            while ahead and (len(ahead) == MAX_READERS or num_bytes + size > MAX_BYTES_AHEAD):
                first_size, first = ahead.popleft()
                num_bytes -= first_size
                yield first.result()
            ahead.append((size, pool.submit(read, url)))
            num_bytes += size
        while ahead:
            yield ahead.popleft()[1].result()


def _read_file(
    store: str, url: str, read: Callable[[storage.OpenTable, int], Result]
) -> list[Result]:
    try:
        with storage.open_table(url, FEATURES) as table:
            found = table.metadata.get("fingerprint")
            if not store.endswith(f"/{found}"):
                logger.warning("left out, because its fingerprint is %s: %s", found, url)
                return []
            return [read(table, group) for group in range(table.num_groups)]
    except MissingArtifactError:
        return []


def _without_strange_stand_ins(
    rows: pa.Table, metadata: Mapping[str, str], gate: str | None
) -> pa.Table:
    """Leave out what stands on another frame, unless this very gate let it."""
    return rows if _is_of(gate, metadata) else rows.filter(pc.is_null(rows["stands_on"]))


def _is_of(gate: str | None, metadata: Mapping[str, str]) -> bool:
    return gate is not None and metadata.get(_GATE) == gate


def _positions_of(
    image_ids: pa.ChunkedArray, views: pa.ChunkedArray | None = None
) -> dict[str, int]:
    # Arrow would hash all image_ids anew for each of thousands of files.
    return {key: position for position, key in enumerate(_keys_of(image_ids, views))}


def _keys_of(image_ids: pa.ChunkedArray, views: pa.ChunkedArray | None) -> list[str]:
    """What is looked at: an image, followed by the name of its view if that has one."""
    if views is None:
        return image_ids.to_pylist()  # type: ignore[no-any-return]
    keys = pc.binary_join_element_wise(image_ids, views, "", null_handling="skip")
    return keys.to_pylist()  # type: ignore[no-any-return]


def _look_up(position_of: Mapping[str, int], rows: pa.Table) -> NDArray[np.int64]:
    return _look_up_keys(position_of, _keys_of(rows["image_id"], rows["view"]))


def _look_up_keys(position_of: Mapping[str, int], keys: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter((position_of.get(key, -1) for key in keys), np.int64, len(keys))


def _is_same(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Tell for each row whether it is the other one."""
    same = pa.array(np.ones(rows.num_rows, bool))
    for name in LEARNED:
        same = pc.and_(same, same_values(rows[name], others[name]))
    return same


def same_values(values: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell for each value whether it is the other one; null is null's equal."""
    both_null = pc.and_(pc.is_null(values), pc.is_null(others))
    return pc.or_(pc.fill_null(pc.equal(values, others), False), both_null)


def differences_from(store: str, settings: FeatureSettings) -> Iterator[str]:
    """Say in what the features of a store differ from those of a run; nothing if it has none.

    Args:
        store: Folder of feature files of other settings or another release.
        settings: What turns an image into a feature in this run.
    """
    wanted = _as_flat(feature_metadata(settings))
    for url in storage.list_parquet(store)[:1]:
        try:
            found = _as_flat(storage.read_metadata(url))
        except MissingArtifactError:  # compacted meanwhile
            continue
        others = [name for name, value in wanted.items() if found.get(name) != value]
        for name in others:
            yield f"{name} {wanted[name]}, was {found.get(name)}"
        if not others:
            yield "the code that makes features is another"


def _as_flat(metadata: dict[str, str]) -> dict[str, str]:
    settings = json.loads(metadata.get("settings", "{}"))
    named = {name: metadata.get(name, "unknown") for name in ("schema_version", "weights_digest")}
    return named | {name: str(value) for name, value in settings.items()}
