"""Stage 10: the summary for machines and a folder of pictures for people."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from prefect.artifacts import create_markdown_artifact

from config import DedupConfig
from tasks import storage
from tasks.alerts import alerts_of
from tasks.cells import open_features
from tasks.feature_store import iterate_thumbnails, store_url
from tasks.history import latest_decisions, read_history
from tasks.manifests import DIGEST, own_rows, report_url_of
from tasks.references import Manifest
from tasks.report_data import ThumbnailFile, publish_scripts, report_rows, with_earlier_images
from tasks.report_page import (
    kept_over_eps_svg,
    page_script,
    plots_of,
    render_page,
    skipped_images,
)
from tasks.schemas import IMAGES, MANIFEST, MATCHES, fingerprint
from tasks.stage import stage
from tasks.summary import Summary, summarize, summary_markdown

logger = logging.getLogger(__name__)


@stage("write_report")
def write_report(
    manifest: Manifest, config: DedupConfig, num_embedded: int, seconds: Mapping[str, float]
) -> Summary:
    """Publish summary and report, and show the summary in Prefect's UI."""
    summary = make_report(manifest, config, num_embedded, seconds)
    create_markdown_artifact(key="dedup-summary", markdown=summary_markdown(summary))
    return summary


def make_report(
    manifest: Manifest, config: DedupConfig, num_embedded: int, seconds: Mapping[str, float]
) -> Summary:
    """Publish summary and report."""
    table = storage.read_table(manifest.url, MANIFEST)
    metadata = storage.read_metadata(manifest.url)
    workspace_url = storage.absolute_url(config.workspace_url)
    summary = summarize(
        table,
        metadata,
        manifest_url=manifest.url,
        report_url=report_url_of(manifest.url),
        price_per_image=config.price_per_image,
        num_embedded=num_embedded,
        seconds=seconds,
    )
    summary = with_execution(summary, metadata, manifest.run_url)
    earlier = latest_decisions(read_history(workspace_url).nights)
    alerts = alerts_of(summary, earlier, config.alerts, min_recall=config.neighbors.min_recall)
    summary = summary.model_copy(update={"alerts": alerts})
    store = store_url(workspace_url, config.features)
    publish_report(manifest.run_url, store, table, metadata, summary)
    storage.publish_bytes(
        storage.join(manifest.run_url, "summary.json"), summary.model_dump_json(indent=2).encode()
    )
    return summary


def with_execution(summary: Summary, metadata: Mapping[str, str], run_url: str) -> Summary:
    """Add what only this execution knows, for those who compare nights.

    Args:
        summary: What the manifest amounts to.
        metadata: The manifest's own metadata.
        run_url: Folder of the run's artifacts.
    """
    images = storage.read_metadata(storage.join(run_url, "images.parquet"))
    sweep = read_sweep(storage.join(run_url, "sweep.json"))
    return summary.model_copy(
        update={
            "executed_at": datetime.now(UTC).replace(microsecond=0),
            "night_id": images.get("night_id"),
            "settings_digest": fingerprint(metadata["config"], summary.weights_digest),
            "mean_nearest_distance": sweep["nearest_distances"].get("mean"),
        }
    )


def publish_report(
    run_url: str, store: str, manifest: pa.Table, metadata: Mapping[str, str], summary: Summary
) -> None:
    """Publish the folder of the report, its page last: where that is, all is.

    Args:
        run_url: Folder of the run's artifacts.
        store: Folder of feature files, for the thumbnails.
        manifest: Table of `schemas.MANIFEST`.
        metadata: The manifest's own metadata.
        summary: What the manifest amounts to; says where the page goes.
    """
    folder_url = summary.report_url.rpartition("/")[0]
    images = storage.read_table(storage.join(run_url, "images.parquet"), IMAGES)
    features = open_features(storage.join(run_url, "features.npy"))
    sweep = read_sweep(storage.join(run_url, "sweep.json"))
    matches_url = storage.join(run_url, "matches.parquet")
    shown = images
    if storage.exists(matches_url):
        shown = with_earlier_images(images, storage.read_table(matches_url, MATCHES))
    rows = report_rows(manifest, shown, summary.source_url)
    with ThumbnailFile(rows.num_rows) as thumbnails:
        for positions, jpegs in iterate_thumbnails(store, rows["image_id"]):
            thumbnails.put(positions, jpegs)
        publish_scripts(folder_url, rows, thumbnails)
    storage.publish_bytes(storage.join(folder_url, "report.js"), page_script())
    curve = kept_over_eps_svg(sweep, eps=summary.eps)
    storage.publish_bytes(storage.join(folder_url, "kept-over-eps.svg"), curve.encode())
    page = render_page(
        summary,
        digest=metadata[DIGEST],
        settings=json.loads(metadata["config"]),
        num_rows=rows.num_rows,
        plots=plots_of(
            own_rows(manifest),
            *(images, summary, features, sweep),
        ),
        skipped=skipped_images(manifest, summary.source_url),
    )
    storage.publish_bytes(summary.report_url, page.encode())
    logger.info("report of %d images in %d groups", rows.num_rows, summary.num_clusters)


def read_sweep(url: str) -> dict[str, Any]:
    """What would be kept for each eps, as `stage08b_sweep_eps` publishes it."""
    sweep: dict[str, Any] = json.loads(storage.read_bytes(url))
    return sweep
