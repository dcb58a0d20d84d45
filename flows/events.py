"""What Prefect's automations hear of: one event for each thing that somebody should know.

An event that cannot be sent never fails a run; what it says stands in the log too.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.events import emit_event
from prefect.runtime import flow_run

from tasks.errors import GuardError
from tasks.manifests import report_url_of
from tasks.summary import Summary

logger = logging.getLogger(__name__)

PREFIX = "image-dedup."


def tell_failed_shards(
    message: str, source_url: str, *, num_failed: int, num_untried: int, num_images: int
) -> None:
    """Tell that a night ends without a manifest, because shards failed.

    Args:
        message: Names the failed shards with their causes.
        source_url: The night.
        num_failed: Shards that failed for good.
        num_untried: Shards that were not tried after them.
        num_images: Images that are not embedded.
    """
    payload = {"num_failed": num_failed, "num_untried": num_untried, "num_images": num_images}
    _tell("shards.failed", message, {"source_url": source_url, **payload})


def tell_night(summary: Summary) -> None:
    """Tell what a person should hear of a night, and that it has finished."""
    about = summary.model_dump(include={"run_id", "source_url", "manifest_url", "report_url"})
    for alert in summary.alerts:
        logger.warning("%s", alert.message)
        _tell(alert.name, alert.message, about | alert.numbers)
    counts = {"num_images", "num_unreadable", "num_keep", "num_remove", "num_orphans"}
    numbers = summary.model_dump(include=counts | {"num_embedded", "recall", "is_complete"})
    message = f"{summary.num_images:,} images: {summary.num_keep:,} stay, {summary.num_remove:,} go"
    alerts = [alert.name for alert in summary.alerts]
    _tell("night.finished", message, about | numbers | {"alerts": alerts})


@contextmanager
def told_of_guards(manifest_url: str) -> Iterator[None]:
    """Tell of a guard that refuses to act on a manifest."""
    try:
        yield
    except GuardError as error:
        report_url = report_url_of(manifest_url)
        _tell("guard.tripped", str(error), {"manifest_url": manifest_url, "report_url": report_url})
        raise


def _tell(name: str, message: str, payload: Mapping[str, Any]) -> None:
    try:
        # Prefect adds the flow, the deployment and its tags as related resources.
        sent = emit_event(
            PREFIX + name,
            resource={
                "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
                "prefect.resource.name": flow_run.name or "",
            },
            payload={"message": message, **payload},
        )
    except Exception as error:  # whatever it is, the night counts more
        logger.warning("event %s not sent: %s: %s", name, type(error).__name__, error)
    else:
        if sent is None:
            logger.warning("event %s not sent: no server takes events", name)
