"""What a run shows in Prefect's UI. All of it is for people, so none of it can fail the run."""

import base64
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.fan_out import Outcome
from flows.progress import Watcher
from tasks import storage
from tasks.errors import DedupError
from tasks.references import FeatureFile, Shard

logger = logging.getLogger(__name__)

MAX_CELL = 200
"""Longest text of one cell of a table."""


class ProgressArtifact:
    """Shows how far the embedding is, in whole percents."""

    def __init__(self, other: Watcher) -> None:
        """Watch on behalf of somebody else too."""
        self._other = other
        self._artifact_id: UUID | None = None
        self._num_images = 0
        self._num_done = 0
        self._shown = 0

    def start(self, num_images: int) -> None:
        """Show a new bar at 0 %, or at 100 % where nothing is to be done."""
        self._other.start(num_images)
        self._num_images, self._num_done = num_images, 0
        self._shown = self._percent()
        with _for_show():
            # Prefect types the answer as one that might be a coroutine; here it never is.
            self._artifact_id = create_progress_artifact(  # type: ignore[assignment]
                self._shown, key="dedup-embedding", description=f"Embedding {num_images:,} images"
            )

    def advance(self, num_images: int) -> None:
        """Move the bar, if it is a percent further."""
        self._other.advance(num_images)
        self._num_done += num_images
        if self._percent() == self._shown or self._artifact_id is None:
            return
        self._shown = self._percent()
        with _for_show():
            update_progress_artifact(self._artifact_id, self._shown)

    def _percent(self) -> int:
        return 100 * self._num_done // self._num_images if self._num_images else 100


def show_shards(outcome: Outcome[Shard, FeatureFile]) -> None:
    """Show what became of each shard, the failed ones first."""
    rows = shard_rows(outcome)
    if rows:
        with _for_show():
            create_table_artifact(rows, key="dedup-shards", description=f"{len(rows):,} shards")


def shard_rows(outcome: Outcome[Shard, FeatureFile]) -> list[dict[str, Any]]:
    """One row for each shard: what went wrong with it, or what it holds and how long it took."""
    failed = [
        _shard_row(failure.reference, f"failed: {type(failure.error).__name__}: {failure.error}")
        for failure in outcome.failures
    ]
    untried = [_shard_row(shard, "not tried") for shard in outcome.untried]
    done = [
        {
            "state": "done",
            "images": file.num_images,
            "unreadable": file.num_unreadable,
            "embedded": file.num_embedded,
            "seconds": file.seconds,
            "file": file.url,
        }
        for file in outcome.results
    ]
    return failed + untried + done


def _shard_row(shard: Shard, state: str) -> dict[str, Any]:
    return {
        "state": state if len(state) <= MAX_CELL else f"{state[:MAX_CELL]}…",
        "images": shard.num_images,
        "unreadable": None,
        "embedded": None,
        "seconds": None,
        "file": shard.first_url,
    }


def show_report(report_url: str) -> None:
    """Show where the report is, and its curve of what would be kept at every eps."""
    with _for_show():
        create_link_artifact(report_url, link_text="report of this run", key="dedup-report")
    with _for_show():
        folder_url = report_url.rpartition("/")[0]
        curve = storage.read_bytes(storage.join(folder_url, "kept-over-eps.svg"))
        create_image_artifact(
            # A picture that needs no place of its own: its data is its address.
            f"data:image/svg+xml;base64,{base64.b64encode(curve).decode()}",
            key="dedup-kept-over-eps",
            description="What would be kept at every eps",
        )


@contextmanager
def _for_show() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError, DedupError) as error:
        logger.warning("not shown in Prefect's UI: %s: %s", type(error).__name__, error)
