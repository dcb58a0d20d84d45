"""Whether the gate is trusted."""

import pyarrow as pa
import pytest

from config import DedupConfig, GateSettings
from tasks import storage
from tasks.feature_store import feature_metadata, gate_name, store_url
from tasks.references import GateCheck, Inventory
from tasks.schemas import FEATURES, INVENTORY
from tasks.stage03b_check_gate import check_gate, gate_check

NOBODY = None


def rows_of(*rows: tuple[str | None, float | None]) -> pa.Table:
    bases, errors = zip(*rows, strict=True) if rows else ((), ())
    return pa.table(
        {"stands_on": pa.array(bases, pa.string()), "gate_error": pa.array(errors, pa.float32())}
    )


@pytest.mark.parametrize(
    ("rows", "check"),
    [
        ([], GateCheck(0, 0, None, is_trusted=True)),
        ([(NOBODY, None)], GateCheck(0, 0, None, is_trusted=True)),
        ([("a", None), (NOBODY, 0.25)], GateCheck(1, 1, 0.25, is_trusted=True)),
        ([("a", None), (NOBODY, 0.25), (NOBODY, 0.5)], GateCheck(1, 2, 0.5, is_trusted=False)),
        # Frames let pass, and nothing measured: that proves nothing.
        ([("a", None), ("a", None)], GateCheck(2, 0, None, is_trusted=False)),
        # Every frame that would have passed was a sample: nothing stands on another.
        ([(NOBODY, 0.5)], GateCheck(0, 1, 0.5, is_trusted=True)),
    ],
)
def test_gate_is_trusted_when_its_samples_prove_it(
    rows: list[tuple[str | None, float | None]], check: GateCheck
) -> None:
    assert gate_check(rows_of(*rows), max_error=0.25) == check


def test_check_reads_the_rows_of_the_night(place: str) -> None:
    workspace = storage.absolute_url(place)
    config = DedupConfig(
        source_url="s3://bucket", workspace_url=workspace, gate=GateSettings(enabled=True)
    )
    common = {"url": "", "size_bytes": 1, "etag": "e"}
    learned = [
        {"image_id": "a"},
        {"image_id": "b", "stands_on": "a"},
        {"image_id": "c", "gate_error": 0.5},
        {"image_id": "another-night", "gate_error": 1.0},
    ]
    table = pa.Table.from_pylist([common | row for row in learned], FEATURES)
    storage.publish_table(
        f"{store_url(workspace, config.features)}/1.parquet",
        table.replace_schema_metadata(feature_metadata(config.features, gate_name(config))),
    )
    inventory_url = f"{workspace}/inventory.parquet"
    listed = [{"image_id": name, **common, "camera": "", "captured_at": 0} for name in "abc"]
    storage.publish_table(inventory_url, pa.Table.from_pylist(listed, INVENTORY))
    check = check_gate.fn(Inventory(inventory_url, "night-1", 3), config)
    assert check == GateCheck(1, 1, 0.5, is_trusted=False)
