"""Two `dedup run` on one night at the same time, where no server makes the second wait."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL

from tests.conftest import Night

pytestmark = pytest.mark.faults

DEDUP = str(Path(sys.executable).parent / "dedup")


@pytest.mark.parametrize("shards", [(4, 4), (4, 7)])
def test_both_end_well_and_leave_what_one_alone_leaves(
    night: Night, tmp_path: Path, prefect_server: None, shards: tuple[int, int]
) -> None:
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}

    def start(workspace: str, images_per_shard: int) -> "subprocess.Popen[bytes]":
        shape = ["--image-size", "64", "--images-per-shard", str(images_per_shard)]
        place = ["--workspace", str(tmp_path / workspace)]
        return subprocess.Popen(
            [DEDUP, "run", str(night.folder), *place, *shape],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    together = [start("together", size) for size in shards]
    assert [process.wait() for process in together] == [0, 0]
    assert start("alone", 4).wait() == 0

    def decided(workspace: str) -> dict[str, bytes]:
        folder = tmp_path / workspace
        names = ("runs/*/manifest.parquet", "library/*/*.parquet", "nights/*/library-*.json")
        paths = [path for name in names for path in folder.glob(name)]
        assert len(paths) == 3
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    assert decided("together") == decided("alone")
    for path in (tmp_path / "together").glob("features/*/*.parquet"):
        pq.read_table(path)
    assert not [path for path in (tmp_path / "together").rglob("*") if path.name.startswith(".")]
