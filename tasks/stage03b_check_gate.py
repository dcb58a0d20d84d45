"""Stage 3b: whether the change gate kept its promise, measured on the frames that were sampled."""

import logging

import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig
from tasks import storage
from tasks.feature_store import gate_name, read_gate_rows, store_url
from tasks.references import GateCheck, Inventory
from tasks.schemas import INVENTORY
from tasks.stage import stage
from tasks.views import view_names

logger = logging.getLogger(__name__)


@stage("check_gate")
def check_gate(inventory: Inventory, config: DedupConfig) -> GateCheck:
    """Measure the error of the gate over the night and decide whether to trust it."""
    listed = storage.read_table(inventory.url, INVENTORY, ["image_id", "camera"])
    store = store_url(storage.absolute_url(config.workspace_url), config.features)
    views = view_names(listed["camera"], config)
    rows = read_gate_rows(store, listed["image_id"], gate_name(config), views=views)
    check = gate_check(rows, max_error=config.gate.max_error)
    logger.info(
        "gate: %d frames stand on another, largest error of %d samples %s, allowed %g",
        check.num_gated,
        check.num_samples,
        "unknown" if check.largest_error is None else f"{check.largest_error:.4f}",
        config.gate.max_error,
    )
    return check


def gate_check(rows: pa.Table, *, max_error: float) -> GateCheck:
    """Judge the gate by the sampled frames.

    Args:
        rows: Columns `stands_on` and `gate_error` of `schemas.FEATURES`.
        max_error: Largest cosine distance allowed between a sampled frame's own feature and that of
            the frame it would have stood on.

    Returns:
        The check; a gate that let frames pass without a single sample is not trusted.
    """
    num_gated = rows.num_rows - rows["stands_on"].null_count
    largest_error = pc.max(rows["gate_error"]).as_py()
    is_proven = largest_error is not None and largest_error <= max_error
    return GateCheck(
        num_gated=num_gated,
        num_samples=rows.num_rows - rows["gate_error"].null_count,
        largest_error=largest_error,
        is_trusted=num_gated == 0 or is_proven,
    )
