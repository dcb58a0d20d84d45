"""Every profile in config/ runs a night in the place that it is for."""

from pathlib import Path

import pytest

from config import load_config
from flows.dedup import dedup
from tasks import storage
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")

PROFILES = Path(__file__).parents[2] / "config"
PLACE_OF = {"laptop": "local", "server_s3": "s3", "cluster": "s3"}
CAMERAS = ("junction-1", "junction-2")


@pytest.mark.parametrize(
    ("profile", "place"), PLACE_OF.items(), ids=list(PLACE_OF), indirect=["place"]
)
def test_profile_runs_a_night(night: Night, profile: str, place: str) -> None:
    for camera in CAMERAS:
        for path in sorted((night.folder / camera).iterdir()):
            storage.publish_bytes(f"{place}/night/{camera}/{path.name}", path.read_bytes())
    said = {
        "source_url": f"{place}/night",
        "workspace_url": f"{place}/workspace",
        # As small as it gets: two processes of a cluster on this machine, and a quick forward pass.
        "features": {"image_size": 32, "dtype": "float32"},
        "execution": {"workers": 2, "images_per_shard": 6},
    }
    summary = dedup(load_config(PROFILES / f"{profile}.yaml", said))
    assert (summary.num_images, summary.num_embedded, summary.num_unreadable) == (11, 11, 0)
    assert (summary.num_keep, summary.num_remove, summary.num_orphans) == (2, 9, 0)


def test_no_profile_is_forgotten() -> None:
    assert {path.stem for path in PROFILES.glob("*.yaml")} == PLACE_OF.keys()
