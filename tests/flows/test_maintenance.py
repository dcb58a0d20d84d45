"""Maintenance: each part does its work where it is asked to, and nothing where it is not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from config import FeatureSettings, MaintenanceConfig, load_apply_config
from flows.acting import apply_manifest
from flows.maintenance import maintenance
from tasks import storage
from tasks.errors import ActionsFailedError
from tasks.feature_store import feature_metadata, store_url
from tasks.library import not_empty, segment_names
from tasks.schemas import FEATURES, LIBRARY
from tests.written_nights import WrittenNight, write_night

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def night(tmp_path: Path) -> WrittenNight:
    """A workspace with two small feature files, an old library and an image in quarantine."""
    night = write_night(str(tmp_path), {"k.jpg": ["a.jpg"]}, noise=["n.jpg"])
    settings = FeatureSettings()
    for name in "ab":
        row = {"image_id": name, "url": name, "size_bytes": 1, "etag": "e", "error": "empty file"}
        table = pa.Table.from_pylist([row], FEATURES)
        storage.publish_table(
            f"{store_url(night.workspace_url, settings)}/{name}.parquet",
            table.replace_schema_metadata(feature_metadata(settings)),
        )
    kept = {
        "image_id": "k",
        "url": night.url("k.jpg"),
        "size_bytes": 1,
        "etag": "e",
        "camera": "",
        "captured_at": 0,
        "sha256": "ab",
        "feature": np.zeros(512, np.float32),
    }
    storage.publish_table(
        f"{night.workspace_url}/library/f/000001-n-0123456789abcdef.parquet",
        pa.Table.from_pylist([kept], LIBRARY),
    )
    settings = {"manifest_url": night.manifest_url, "execute": True}
    assert apply_manifest(load_apply_config(None, settings)).num_done == 1
    return night


def left(night: WrittenNight) -> dict[str, int]:
    """What is left of files, library and quarantine."""
    quarantine = storage.list_files(f"{night.workspace_url}/quarantine")
    return {
        "feature files": len(
            storage.list_parquet(store_url(night.workspace_url, FeatureSettings()))
        ),
        "segments": len(not_empty(segment_names(f"{night.workspace_url}/library/f"))),
        "in quarantine": len(quarantine),
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compact": False}, (2, 1, 1)),
        ({}, (1, 1, 1)),
        ({"compact": False, "prune_library_older_than": "1d"}, (2, 0, 1)),
        ({"compact": False, "purge_older_than": "0s"}, (2, 1, 0)),
        ({"compact": False, "purge_older_than": "1d"}, (2, 1, 1)),
    ],
)
def test_each_part_is_done_where_it_is_asked_for(
    night: WrittenNight, settings: dict[str, object], expected: tuple[int, int, int]
) -> None:
    maintenance(MaintenanceConfig(workspace_url=night.workspace_url, **settings))

    assert tuple(left(night).values()) == expected


def test_image_without_a_living_keeper_fails_the_flow_and_stays(night: WrittenNight) -> None:
    fs, path = storage.filesystem(night.url("k.jpg"))
    fs.rm_file(path)

    with pytest.raises(ActionsFailedError, match="1 images in quarantine were left alone"):
        maintenance(MaintenanceConfig(workspace_url=night.workspace_url, purge_older_than="0s"))

    assert left(night)["in quarantine"] == 1
