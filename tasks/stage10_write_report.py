"""Stage 10: the summary for machines and a page for people."""

import base64
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect.artifacts import create_markdown_artifact

from config import DedupConfig
from tasks import storage
from tasks.distances import similarity_percent
from tasks.errors import DedupError
from tasks.images import make_thumbnail
from tasks.manifests import report_url_of
from tasks.references import Manifest
from tasks.schemas import MANIFEST
from tasks.stage import stage
from tasks.summary import Summary, summarize, summary_markdown, summary_rows

logger = logging.getLogger(__name__)

MAX_CLUSTERS = 60
MAX_PICTURES = 12
MAX_SKIPPED = 200


@dataclass(frozen=True)
class Picture:
    """One image of a cluster as the page shows it."""

    url: str
    is_keeper: bool
    caption: str
    thumbnail: str | None
    """A data URL, or None when the image can no longer be read."""


@dataclass(frozen=True)
class ClusterStrip:
    """One cluster as the page shows it: its keepers first, then the weakest twins."""

    cluster_id: int
    num_images: int
    pictures: tuple[Picture, ...]


@stage("write_report")
def write_report(
    manifest: Manifest, config: DedupConfig, num_embedded: int, seconds: Mapping[str, float]
) -> Summary:
    """Publish summary and report, and show the summary in Prefect's UI."""
    table = storage.read_table(manifest.url, MANIFEST)
    report_url = report_url_of(manifest.url)
    summary = summarize(
        table,
        storage.read_metadata(manifest.url),
        manifest_url=manifest.url,
        report_url=report_url,
        price_per_image=config.price_per_image,
        num_embedded=num_embedded,
        seconds=seconds,
    )
    page = render_report(
        summary,
        cluster_strips(table, lambda url: read_thumbnail(url, config)),
        skipped_images(table),
    )
    storage.publish_bytes(report_url, page.encode())
    storage.publish_bytes(
        storage.join(manifest.run_url, "summary.json"), summary.model_dump_json(indent=2).encode()
    )
    create_markdown_artifact(key="dedup-summary", markdown=summary_markdown(summary))
    return summary


def cluster_strips(
    manifest: pa.Table, thumbnail: Callable[[str], str | None]
) -> list[ClusterStrip]:
    """Show the largest clusters.

    Args:
        manifest: Table of `schemas.MANIFEST`.
        thumbnail: Gives the data URL of an image's thumbnail.

    Returns:
        At most `MAX_CLUSTERS` clusters, the largest first, of at most `MAX_PICTURES` pictures.
    """
    labels = manifest["cluster_id"].to_numpy()
    cluster_ids, sizes = np.unique(labels[labels >= 0], return_counts=True)
    largest = np.lexsort((cluster_ids, -sizes))[:MAX_CLUSTERS]
    return [
        ClusterStrip(
            cluster_id=int(cluster_ids[number]),
            num_images=int(sizes[number]),
            pictures=tuple(
                _picture(row, thumbnail)
                for row in _shown(manifest.take(np.flatnonzero(labels == cluster_ids[number])))
            ),
        )
        for number in largest
    ]


def _shown(members: pa.Table) -> list[dict[str, Any]]:
    kept = members.filter(pc.equal(members["action"], "keep"))
    removed = members.filter(pc.equal(members["action"], "remove"))
    # The weakest twins first: they are what a person wants to check.
    weakest_first = removed.sort_by([("distance", "descending"), ("url", "ascending")])
    num_kept = min(kept.num_rows, MAX_PICTURES // 2)
    return [*kept[:num_kept].to_pylist(), *weakest_first[: MAX_PICTURES - num_kept].to_pylist()]


def _picture(row: dict[str, Any], thumbnail: Callable[[str], str | None]) -> Picture:
    is_keeper = row["action"] == "keep"
    caption = (
        "keep" if is_keeper else f"{row['reason']}, {similarity_percent(row['distance']):.2f} %"
    )
    return Picture(
        url=row["url"], is_keeper=is_keeper, caption=caption, thumbnail=thumbnail(row["url"])
    )


def skipped_images(manifest: pa.Table) -> list[tuple[str, str]]:
    """URL and reason of the images that were skipped, at most `MAX_SKIPPED`."""
    skipped = manifest.filter(pc.equal(manifest["action"], "skip")).slice(0, MAX_SKIPPED)
    return list(zip(skipped["url"].to_pylist(), skipped["reason"].to_pylist(), strict=True))


def read_thumbnail(url: str, config: DedupConfig) -> str | None:
    """Read an image and make a data URL of its thumbnail; None when it cannot be read any more."""
    try:
        thumbnail = make_thumbnail(
            storage.read_bytes(url), max_pixels=config.features.max_image_pixels
        )
    except (OSError, DedupError):
        # A picture that vanished since must not fail a run whose manifest is written.
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"


def render_report(
    summary: Summary, strips: list[ClusterStrip], skipped: list[tuple[str, str]]
) -> str:
    """Fill the page: one HTML file that needs no server and no network."""
    return _template().render(
        summary=summary,
        rows=summary_rows(summary),
        strips=strips,
        skipped=skipped,
    )


@lru_cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
