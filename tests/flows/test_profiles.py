"""Every profile in config/ runs a night in the place that it is for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from config import load_config
from flows.dedup import dedup
from tasks import storage
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")

PROFILES = Path(__file__).parents[2] / "config"
PLACE_OF = {"laptop": "local", "server_s3": "s3", "cluster": "s3"}
CAMERAS = ("junction-1", "junction-2")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster whose two workers are threads of this process."""
    shape = {"n_workers": 2, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**shape, protocol="tcp://", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize(
    ("profile", "place"), PLACE_OF.items(), ids=list(PLACE_OF), indirect=["place"]
)
def test_profile_runs_a_night(
    night: Night, profile: str, place: str, request: pytest.FixtureRequest
) -> None:
    for camera in CAMERAS:
        for path in sorted((night.folder / camera).iterdir()):
            storage.publish_bytes(f"{place}/night/{camera}/{path.name}", path.read_bytes())
    execution = {"workers": 2, "images_per_shard": 6}
    if profile == "cluster":
        execution["cluster_address"] = request.getfixturevalue("scheduler")
    said = {
        "source_url": f"{place}/night",
        "workspace_url": f"{place}/workspace",
        "features": {"image_size": 32, "dtype": "float32"},
        "execution": execution,
    }
    summary = dedup(load_config(PROFILES / f"{profile}.yaml", said))
    assert (summary.num_images, summary.num_embedded, summary.num_unreadable) == (11, 11, 0)
    assert (summary.num_keep, summary.num_remove, summary.num_orphans) == (2, 9, 0)


def test_no_profile_is_forgotten() -> None:
    assert {path.stem for path in PROFILES.glob("*.yaml")} == PLACE_OF.keys()
