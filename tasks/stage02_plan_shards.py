"""Stage 2: what is listed and not yet embedded, cut into shards."""

import io
import logging
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config import DedupConfig
from tasks import storage
from tasks.change_gate import chain_lengths, shard_lengths
from tasks.feature_store import gate_name, settled_image_ids, store_url
from tasks.references import Inventory, Shard
from tasks.schemas import INVENTORY, SHARD, fingerprint
from tasks.stage import stage
from tasks.views import view_names

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000
"""Prefect's server records about 20 task runs a second; larger nights get larger shards."""


@stage("plan_shards")
def plan_shards(inventory: Inventory, config: DedupConfig) -> list[Shard]:
    """Publish the plan: inventory minus feature store, one row group per shard."""
    workspace_url = storage.absolute_url(config.workspace_url)
    listed = storage.read_table(inventory.url, INVENTORY)
    store = store_url(workspace_url, config.features)
    views = view_names(listed["camera"], config)
    settled = settled_image_ids(store, listed["image_id"], gate_name(config), views=views)
    pending = pending_images(listed, views, settled)
    logger.info(
        "%d of %d images are embedded already, %d to go",
        inventory.num_images - pending.num_rows,
        inventory.num_images,
        pending.num_rows,
    )
    if not pending.num_rows:
        return []
    shard_size = images_per_shard(pending.num_rows, config.execution.images_per_shard)
    if config.gate.enabled:
        pending = pending.sort_by([("camera", "ascending"), ("url", "ascending")])
        lengths = shard_lengths(chain_lengths(pending["camera"].to_pylist()), shard_size)
    else:
        lengths = equal_lengths(pending.num_rows, shard_size)
    plan_id = fingerprint(pending["image_id"].to_pylist(), pending["view"].to_pylist(), lengths)
    url = storage.join(workspace_url, "nights", inventory.night_id, f"plan-{plan_id}.parquet")
    return publish_plan(url, pending, lengths)


def pending_images(listed: pa.Table, views: pa.ChunkedArray, settled: pa.ChunkedArray) -> pa.Table:
    """Select the images that must be embedded, in the order of the inventory.

    Args:
        listed: Table of `schemas.INVENTORY`.
        views: Name of the view of each image.
        settled: image_ids that need no further look.

    Returns:
        A table of `schemas.SHARD`.
    """
    done = pc.is_in(listed["image_id"], value_set=settled)
    readable_name = pc.is_null(listed["error"])
    listed = listed.append_column("view", views)
    pending = listed.filter(pc.and_(readable_name, pc.invert(done)))
    return pending.select(SHARD.names).cast(SHARD).replace_schema_metadata(None)


def images_per_shard(num_images: int, wanted: int) -> int:
    """The shard size that was asked for, or the smallest that gives at most `MAX_SHARDS`."""
    return max(wanted, -(-num_images // MAX_SHARDS))


def equal_lengths(num_images: int, shard_size: int) -> list[int]:
    """Cut images into shards of one size; the last may have fewer."""
    return [min(shard_size, num_images - start) for start in range(0, num_images, shard_size)]


def publish_plan(plan_url: str, pending: pa.Table, lengths: Sequence[int]) -> list[Shard]:
    """Publish a plan and name its row groups.

    Args:
        plan_url: Where.
        pending: Table of `schemas.SHARD`.
        lengths: Images of each shard, which are as many as there are rows.
    """
    sink = io.BytesIO()
    shards: list[Shard] = []
    with pq.ParquetWriter(sink, pending.schema, compression="zstd") as writer:
        for length, end in zip(lengths, accumulate(lengths), strict=True):
            rows = pending.slice(end - length, length)
            writer.write_table(rows, row_group_size=length)
            shards.append(Shard(plan_url, len(shards), length, rows["url"][0].as_py()))
    storage.publish_bytes(plan_url, sink.getvalue())
    return shards


def read_shard(shard: Shard) -> pa.Table:
    """Read the rows of one shard.

    Returns:
        A table of `schemas.SHARD`.
    """
    with storage.open_file(shard.plan_url) as file:
        return pq.ParquetFile(file).read_row_group(shard.number)
