"""Runs of which nothing is left but their summary, and journals that end in some way."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tasks import storage
from tasks.journal import Journal, Operation, applies_url
from tasks.summary import Summary

START = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


def summary_of_night(day: int, **changes: Any) -> Summary:
    """The summary of a usual night: 100 images, of which 60 go and 1 is unreadable."""
    date = (START + timedelta(days=day)).date()
    values = {
        "run_id": f"{date}-{day:016x}",
        "source_url": f"s3://cameras/{date}",
        "manifest_url": "s3://cameras/m.parquet",
        "report_url": "s3://cameras/r.html",
        "num_images": 100,
        "num_unreadable": 1,
        "num_exact_copies": 0,
        "num_clusters": 1,
        "cluster_sizes": {},
        "num_noise": 0,
        "num_keep": 39,
        "num_remove": 60,
        "num_remove_for_earlier": 0,
        "num_kept_before": 0,
        "num_orphans": 0,
        "bytes_total": 0,
        "bytes_saved": 0,
        "percent_annotation_left": 39.4,
        "is_complete": True,
        "eps": 0.05,
        "recall": 1.0,
        "is_search_exact": True,
        "weights_digest": "w",
        "gate": None,
        "num_embedded": 80,
        "num_ignored": {},
        "cost_saved": None,
        "cost_left": None,
        "seconds": {"list": 1.0, "embed": 39.0},
        "executed_at": START + timedelta(days=day),
        "night_id": f"night-{day}",
        "settings_digest": "settings",
        "mean_nearest_distance": 0.02,
    }
    return Summary.model_validate(values | changes)


def write_summary(workspace_url: str, day: int, **changes: Any) -> Summary:
    """Write the summary of a usual night to where a run puts it."""
    summary = summary_of_night(day, **changes)
    url = storage.join(workspace_url, "runs", summary.run_id, "summary.json")
    storage.publish_bytes(url, summary.model_dump_json().encode())
    return summary


def write_apply(
    workspace_url: str,
    run_id: str,
    operation: Operation = "quarantine",
    number: int = 1,
    ended: dict[str, str] | None = None,
) -> str:
    """Write the journal of an apply that has begun, and perhaps ended; gives its folder."""
    apply_id = f"{run_id}-quarantine-01234567-{number}"
    url = storage.join(applies_url(workspace_url, run_id), apply_id)
    journal = Journal(url, apply_id)
    journal.append(operation, "begin")
    if ended is not None:
        journal.append(operation, "end", details=ended)
    return url
