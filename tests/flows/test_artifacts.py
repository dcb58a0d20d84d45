"""What a run shows in Prefect's UI, read back from a real server."""

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.artifacts import ProgressArtifact, shard_rows, show_report, show_shards
from flows.fan_out import Failure, Outcome
from tasks.references import FeatureFile, Shard

pytestmark = pytest.mark.usefixtures("prefect_server")

SHARD = Shard(plan_url="plan", number=0, num_images=3, first_url="file:///night/a.jpg")
FILE = FeatureFile(
    url="file:///w/1.parquet", num_images=64, num_unreadable=1, num_embedded=60, seconds=5.25
)


class Somebody:
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def start(self, num_images: int) -> None:
        self.told.append(("start", num_images))

    def advance(self, num_images: int) -> None:
        self.told.append(("advance", num_images))


def in_a_flow(show: Callable[[], None]) -> None:
    """Show something the way a run does."""
    flow(name="shows")(show)()


def last_artifact(key: str) -> Any:
    """The artifact of this key that was made last."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )[0]


def test_progress_moves_in_whole_percents() -> None:
    somebody = Somebody()
    seen = []

    def embed() -> None:
        progress = ProgressArtifact(somebody)
        progress.start(200)
        seen.append(last_artifact("dedup-embedding"))
        for num_images in (1, 149):
            progress.advance(num_images)
            seen.append(last_artifact("dedup-embedding"))

    in_a_flow(embed)

    at_start, after_half_a_percent, moved = seen
    assert (at_start.type, at_start.data, at_start.description) == (
        *("progress", 0.0),
        "Embedding 200 images",
    )
    assert after_half_a_percent.updated == at_start.updated
    assert (moved.id, moved.data) == (at_start.id, 75.0)
    assert somebody.told == [("start", 200), ("advance", 1), ("advance", 149)]


def test_nothing_to_do_is_done() -> None:
    in_a_flow(lambda: ProgressArtifact(Somebody()).start(0))

    assert last_artifact("dedup-embedding").data == 100.0


def test_shards_are_a_table_with_the_failed_ones_first() -> None:
    outcome = Outcome(
        results=[FILE], failures=[Failure(SHARD, OSError("no route " * 40))], untried=[SHARD]
    )

    in_a_flow(lambda: show_shards(outcome))

    rows = shard_rows(outcome)
    assert [row["state"][:24] for row in rows] == ["failed: OSError: no rout", "not tried", "done"]
    assert len(rows[0]["state"]) == 201
    assert rows[1] == {
        "state": "not tried",
        "images": 3,
        "unreadable": None,
        "embedded": None,
        "seconds": None,
        "file": "file:///night/a.jpg",
    }
    assert rows[2] == {
        "state": "done",
        "images": 64,
        "unreadable": 1,
        "embedded": 60,
        "seconds": 5.25,
        "file": "file:///w/1.parquet",
    }
    shown = last_artifact("dedup-shards")
    assert (shown.type, shown.description) == ("table", "3 shards")
    assert "no route" in shown.data


def test_no_shards_are_no_table() -> None:
    in_a_flow(lambda: show_shards(Outcome(results=[FILE], failures=[], untried=[])))
    before = last_artifact("dedup-shards").id

    in_a_flow(lambda: show_shards(Outcome(results=[], failures=[], untried=[])))

    assert last_artifact("dedup-shards").id == before


def test_report_is_a_link_and_its_curve_a_picture(tmp_path: Path) -> None:
    (tmp_path / "kept-over-eps.svg").write_text("<svg>ä</svg>")

    in_a_flow(lambda: show_report(f"file://{tmp_path}/index.html"))

    link, picture = last_artifact("dedup-report"), last_artifact("dedup-kept-over-eps")
    head, _, data = picture.data.partition(",")
    assert isinstance(link.id, UUID)
    assert link.data == f"[report of this run](file://{tmp_path}/index.html)"
    assert (picture.type, head) == ("image", "data:image/svg+xml;base64")
    assert base64.b64decode(data).decode() == "<svg>ä</svg>"


def test_curve_that_is_missing_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flows.artifacts"):
        in_a_flow(lambda: show_report(f"file://{tmp_path}/index.html"))

    assert "not shown in Prefect's UI: FileNotFoundError: " in caplog.text


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_server_that_has_gone_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    # Outside of a flow, because inside of one the flow's own connection would be used.
    gone = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}

    with temporary_settings(gone), caplog.at_level(logging.WARNING, "flows.artifacts"):
        show_report("file:///report")

    assert "not shown in Prefect's UI: " in caplog.text
