"""Stage 2: what is listed and not yet embedded, cut into shards."""

import io
import logging

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config import DedupConfig
from tasks import storage
from tasks.feature_store import settled_image_ids, store_url
from tasks.references import Inventory, Shard
from tasks.schemas import INVENTORY, SHARD, fingerprint
from tasks.stage import stage

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000
"""Prefect's server records about 20 task runs a second; larger nights get larger shards."""


@stage("plan_shards")
def plan_shards(inventory: Inventory, config: DedupConfig) -> list[Shard]:
    """Publish the plan: inventory minus feature store, one row group per shard."""
    workspace_url = storage.absolute_url(config.workspace_url)
    listed = storage.read_table(inventory.url, INVENTORY)
    settled = settled_image_ids(store_url(workspace_url, config.features), listed["image_id"])
    pending = pending_images(listed, settled)
    logger.info(
        "%d of %d images are embedded already, %d to go",
        inventory.num_images - pending.num_rows,
        inventory.num_images,
        pending.num_rows,
    )
    if not pending.num_rows:
        return []
    shard_size = images_per_shard(pending.num_rows, config.execution.images_per_shard)
    plan_id = fingerprint(pending["image_id"].to_pylist(), shard_size)
    url = storage.join(workspace_url, "nights", inventory.night_id, f"plan-{plan_id}.parquet")
    sink = io.BytesIO()
    pq.write_table(pending, sink, row_group_size=shard_size, compression="zstd")
    storage.publish_bytes(url, sink.getvalue())
    return shards_of(url, pending, shard_size)


def pending_images(listed: pa.Table, settled: pa.ChunkedArray) -> pa.Table:
    """Select the images that must be embedded, in the order of the inventory.

    Args:
        listed: Table of `schemas.INVENTORY`.
        settled: image_ids that need no further look.

    Returns:
        A table of `schemas.SHARD`.
    """
    done = pc.is_in(listed["image_id"], value_set=settled)
    readable_name = pc.is_null(listed["error"])
    pending = listed.filter(pc.and_(readable_name, pc.invert(done)))
    return pending.select(SHARD.names).replace_schema_metadata(None)


def images_per_shard(num_images: int, wanted: int) -> int:
    """The shard size that was asked for, or the smallest that gives at most `MAX_SHARDS`."""
    return max(wanted, -(-num_images // MAX_SHARDS))


def shards_of(plan_url: str, pending: pa.Table, shard_size: int) -> list[Shard]:
    """Name the row groups of a plan."""
    return [
        Shard(
            plan_url=plan_url,
            number=number,
            num_images=min(shard_size, pending.num_rows - start),
            first_url=pending["url"][start].as_py(),
        )
        for number, start in enumerate(range(0, pending.num_rows, shard_size))
    ]


def read_shard(shard: Shard) -> pa.Table:
    """Read the rows of one shard.

    Returns:
        A table of `schemas.SHARD`.
    """
    with storage.open_file(shard.plan_url) as file:
        return pq.ParquetFile(file).read_row_group(shard.number)
