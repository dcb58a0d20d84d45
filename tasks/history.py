"""The nights of a workspace: one small file of each run, and how its applies ended."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from tasks import storage
from tasks.errors import ArtifactError, StorageError
from tasks.journal import Head, applies_url, last_head, list_applies
from tasks.summary import Alert, Summary

MAX_READERS = 32
"""Runs read at a time, because a bucket's answer takes its time."""

_DATE = re.compile(r"(?<!\d)(19|20)\d\d([-_/.]?)(0[1-9]|1[0-2])\2([0-2]\d|3[01])(?!\d)")
_LONG_AGO = datetime.fromtimestamp(0, UTC)


class Acted(BaseModel):
    """How the last thing ended that was done with a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    has_ended: bool
    """False while it is carried out, and when it was stopped halfway."""
    num_done: int | None
    """None as long as it has not ended."""
    num_left: int | None
    """Images that were left alone."""


class Night(BaseModel):
    """A run in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    source_url: str
    stream: str
    """The source without its date: nights that follow each other have the same."""
    night: str
    """What was decided about: the source where its URL has a date, else the listing."""
    executed_at: AwareDatetime | None
    settings_digest: str | None
    num_images: int
    num_new: int | None
    num_keep: int
    num_remove: int
    removed_share: float | None
    """Of the readable images, in [0, 1]; None without any."""
    unreadable_share: float | None
    """Of all images, in [0, 1]."""
    mean_nearest_distance: float | None
    recall: float
    is_complete: bool
    seconds: float | None
    seconds_per_new_image: float | None
    alerts: tuple[str, ...]
    report_url: str
    acted: Acted | None = None

    @property
    def place_in_time(self) -> tuple[str, datetime]:
        """What sorts the nights of a stream: the date in their URL, then when they were decided."""
        return self.source_url, self.executed_at or _LONG_AGO


@dataclass(frozen=True)
class History:
    """What is known of a workspace's runs."""

    nights: list[Night]
    """Every run, stream by stream in the order of time."""
    problems: dict[str, str]
    """What is wrong with the runs, and applies, that cannot be told of; by run id."""


def read_history(workspace_url: str, *, with_applies: bool = False) -> History:
    """Read the summaries of all runs of a workspace.

    Args:
        workspace_url: Any spelling of it.
        with_applies: Say also what was done with the manifests, which is a few requests more.
    """
    run_urls = storage.list_names(storage.join(storage.absolute_url(workspace_url), "runs"))
    with ThreadPoolExecutor(MAX_READERS) as pool:
        read = list(pool.map(lambda url: _read_night(url.rstrip("/"), with_applies), run_urls))
    nights = [night for night, _ in read if night is not None]
    return History(
        nights=sorted(nights, key=lambda night: (night.stream, night.place_in_time, night.run_id)),
        problems={
            url.rstrip("/").rpartition("/")[2]: problem
            for url, (_, problem) in zip(run_urls, read, strict=True)
            if problem is not None
        },
    )


def _read_night(run_url: str, with_applies: bool) -> tuple[Night | None, str | None]:
    run_id = run_url.rpartition("/")[2]
    night = None
    try:
        night = night_of(_read_summary(run_url, run_id))
        if with_applies:
            night = night.model_copy(update={"acted": _read_acted(run_url, run_id)})
    except (ArtifactError, StorageError) as error:
        return night, str(error)
    return night, None


def _read_summary(run_url: str, run_id: str) -> Summary:
    url = storage.join(run_url, "summary.json")
    try:
        summary = Summary.model_validate_json(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"the run has not finished: no summary {url}") from None
    except (ValidationError, IsADirectoryError):
        raise ArtifactError(f"expected a summary of this version, found none: {url}") from None
    if summary.run_id != run_id:
        raise ArtifactError(f"expected the summary of {run_id}, found {summary.run_id!r}: {url}")
    return summary


def read_alerts(manifest_url: str, run_id: str) -> tuple[Alert, ...]:
    """What a person should hear of a run; nothing where its summary is missing or damaged."""
    try:
        return _read_summary(manifest_url.rpartition("/")[0], run_id).alerts
    except (ArtifactError, StorageError):
        return ()


def _read_acted(run_url: str, run_id: str) -> Acted | None:
    workspace_url = run_url.removesuffix(f"/runs/{run_id}")
    folder_url = applies_url(workspace_url, run_id)
    heads = [last_head(storage.join(folder_url, name)) for name in list_applies(folder_url)]
    newest = max(filter(None, heads), key=lambda head: head.at, default=None)
    return None if newest is None else acted_of(newest)


def acted_of(head: Head) -> Acted:
    """Say how an apply ended from the last segment of its journal."""

    def count(name: str) -> int | None:
        said = head.details.get(name, "") if head.kind == "end" else ""
        return int(said) if said.isdecimal() else None

    return Acted(
        operation=head.operation,
        has_ended=head.kind == "end",
        num_done=count("done"),
        num_left=count("left"),
    )


def night_of(summary: Summary) -> Night:
    """A run in a row."""
    stream = stream_of(summary.source_url)
    listing = summary.night_id or summary.run_id
    seconds = round(sum(summary.seconds.values()), 3) if summary.seconds else None
    return Night(
        run_id=summary.run_id,
        source_url=summary.source_url,
        stream=stream,
        night=listing if stream == summary.source_url else summary.source_url,
        executed_at=summary.executed_at,
        settings_digest=summary.settings_digest,
        num_images=summary.num_images,
        num_new=summary.num_embedded,
        num_keep=summary.num_keep,
        num_remove=summary.num_remove,
        removed_share=_share(summary.num_remove, summary.num_keep + summary.num_remove),
        unreadable_share=_share(summary.num_unreadable, summary.num_images),
        mean_nearest_distance=summary.mean_nearest_distance,
        recall=summary.recall,
        is_complete=summary.is_complete,
        seconds=seconds,
        seconds_per_new_image=_share(seconds, summary.num_embedded),
        alerts=tuple(alert.name for alert in summary.alerts),
        report_url=summary.report_url,
    )


def stream_of(source_url: str) -> str:
    """The source without its dates: `s3://cameras/2026-02-28` is a night of `s3://cameras/*`.

    Dates are year, month and day of 8 digits, with `-`, `_`, `.`, `/` or nothing in between.
    """
    return _DATE.sub("*", source_url)


def latest_decisions(nights: Iterable[Night]) -> list[Night]:
    """Of nights that were decided about more than once, the last decision; the order stays."""
    nights = list(nights)
    latest: dict[tuple[str, str], Night] = {}
    for night in sorted(nights, key=lambda night: night.executed_at or _LONG_AGO):
        latest[night.stream, night.night] = night
    return [night for night in nights if latest[night.stream, night.night] is night]


def comparable_nights(night: Night, nights: Iterable[Night], limit: int) -> list[Night]:
    """The last nights before one that it can be held against, in the order of time.

    They are complete, of the same stream, and were decided by the same settings: another eps, or
    another way to make features, gives other numbers.

    Args:
        night: The one that is looked at.
        nights: All nights, one decision each.
        limit: How many of them.
    """
    before = [
        other
        for other in nights
        if other.is_complete
        and other.stream == night.stream
        and other.settings_digest == night.settings_digest
        and other.night != night.night
        and other.place_in_time < night.place_in_time
    ]
    return sorted(before, key=lambda other: other.place_in_time)[-limit:]


@dataclass(frozen=True)
class Trend:
    """One number of the last night of a stream beside those of the nights before."""

    measure: str
    latest: float | None
    earlier: list[float]
    """Of the nights it can be held against, in the order of time."""

    @property
    def median(self) -> float | None:
        """Median of the earlier nights, None without any."""
        return float(np.median(self.earlier)) if self.earlier else None


TREND_MEASURES = (
    *("num_images", "removed_share", "unreadable_share", "mean_nearest_distance"),
    "seconds_per_new_image",
)


def trends_of(nights: Sequence[Night], limit: int) -> list[Trend]:
    """Hold the last night of a stream against those before it.

    Args:
        nights: Nights of one stream, one decision each, in the order of time; at least one.
        limit: How many earlier nights at most.
    """
    latest = nights[-1]
    earlier = comparable_nights(latest, nights, limit)
    return [
        Trend(measure, getattr(latest, measure), values_of(earlier, measure))
        for measure in TREND_MEASURES
    ]


def values_of(nights: Iterable[Night], measure: str) -> list[float]:
    """One number of each night that has it."""
    values = (getattr(night, measure) for night in nights)
    return [float(value) for value in values if value is not None]


def _share(part: float | None, whole: int | None) -> float | None:
    return round(part / whole, 6) if part is not None and whole else None
