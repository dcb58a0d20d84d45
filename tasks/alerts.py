"""What a person should hear of a night, said in one sentence each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from config import AlertSettings
from tasks.drift import usual_band
from tasks.history import Night, comparable_nights, night_of, values_of
from tasks.summary import Alert, Summary


@dataclass(frozen=True)
class Measure:
    """A number of a night that should not change much."""

    name: str
    """Field of `Night`."""
    label: str
    number_format: str
    setting: str
    """Field of `AlertSettings` with the smallest change that counts."""
    is_relative: bool
    """Whether that is a share of the median."""


MEASURES = (
    Measure("removed_share", "share removed", ".1%", "min_change_removed", False),
    Measure("unreadable_share", "unreadable share", ".1%", "min_change_unreadable", False),
    Measure("mean_nearest_distance", "mean nearest distance", ".4f", "min_change_distance", True),
    Measure("num_images", "number of images", ",.0f", "min_change_images", True),
)


def alerts_of(
    summary: Summary, nights: Sequence[Night], settings: AlertSettings, *, min_recall: float
) -> tuple[Alert, ...]:
    """Find what a person should hear of.

    Args:
        summary: The night that was just decided.
        nights: All nights of the workspace, one decision each.
        settings: How far from the earlier ones is too far.
        min_recall: The recall that was wanted.
    """
    alerts = []
    if not summary.is_complete:
        message = "the night is not complete: shards failed, and their images are skipped"
        alerts.append(Alert(name="shards.failed", message=message))
    if summary.recall < min_recall:
        alerts.append(
            Alert(
                name="recall.low",
                message=(
                    f"the clusters honour {summary.recall:.4f} of the pairs within eps, "
                    f"expected at least {min_recall:g}"
                ),
                numbers={"recall": summary.recall, "min_recall": min_recall},
            )
        )
    # Images that were not embedded count as unreadable, so an incomplete night is always far off.
    if summary.is_complete:
        alerts += drifts(night_of(summary), nights, settings)
    return tuple(alerts)


def drifts(night: Night, nights: Sequence[Night], settings: AlertSettings) -> Iterator[Alert]:
    """Find the numbers of a night that are far from those of the nights before it.

    Args:
        night: The one that is looked at.
        nights: All nights of the workspace, one decision each.
        settings: How far is too far.
    """
    before = comparable_nights(night, nights, settings.nights)
    for measure in MEASURES:
        value, earlier = getattr(night, measure.name), values_of(before, measure.name)
        if value is None or len(earlier) < settings.min_nights:
            continue
        change = getattr(settings, measure.setting)
        band = usual_band(
            earlier,
            max_deviation=settings.max_deviation,
            min_change=0.0 if measure.is_relative else change,
            min_relative_change=change if measure.is_relative else 0.0,
        )
        if not band.has(value):
            found, median, allowed = (
                format(number, measure.number_format)
                for number in (value, band.median, band.allowed)
            )
            yield Alert(
                name="drift",
                message=(
                    f"the {measure.label} is {found}, the median of the {len(earlier)} nights "
                    f"before is {median}, and up to {allowed} from it is usual"
                ),
                numbers={measure.name: value, "median": band.median, "allowed": band.allowed},
            )
