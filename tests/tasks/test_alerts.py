"""Alerts: what a person hears of a night."""

from typing import Any

import pytest
from pydantic import ValidationError

from config import AlertSettings
from tasks.alerts import alerts_of
from tasks.history import night_of
from tasks.summary import Alert
from tests.written_summaries import summary_of_night

USUAL = [night_of(summary_of_night(day)) for day in range(7)]


def alerts(*, nights: Any = USUAL, settings: Any = None, **changes: Any) -> tuple[Alert, ...]:
    summary = summary_of_night(7, **changes)
    return alerts_of(summary, nights, AlertSettings(**(settings or {})), min_recall=0.999)


def test_usual_night_alerts_nobody() -> None:
    assert alerts() == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_keep": 89, "num_remove": 10},
            "the share removed is 10.1%, the median of the 7 nights before is 60.6%, "
            "and up to 10.0% from it is usual",
        ),
        (
            {"num_images": 109, "num_unreadable": 10},
            "the unreadable share is 9.2%, the median of the 7 nights before is 1.0%, "
            "and up to 1.0% from it is usual",
        ),
        (
            {"mean_nearest_distance": 0.03},
            "the mean nearest distance is 0.0300, the median of the 7 nights before is 0.0200, "
            "and up to 0.0050 from it is usual",
        ),
        (
            {"num_images": 1_000, "num_unreadable": 10},
            "the number of images is 1,000, the median of the 7 nights before is 100, "
            "and up to 50 from it is usual",
        ),
    ],
)
def test_number_far_from_those_before_is_drift(changes: dict[str, Any], message: str) -> None:
    (alert,) = alerts(**changes)
    assert (alert.name, alert.message) == ("drift", message)


def test_numbers_come_along() -> None:
    (alert,) = alerts(mean_nearest_distance=0.03)
    assert alert.numbers == {
        "mean_nearest_distance": 0.03,
        "median": 0.02,
        "allowed": pytest.approx(0.005),
    }


def test_nothing_is_said_before_there_are_enough_nights() -> None:
    assert alerts(nights=USUAL[1:], mean_nearest_distance=0.5) == ()
    assert len(alerts(nights=USUAL[1:], mean_nearest_distance=0.5, settings={"min_nights": 6})) == 1


def test_nights_that_do_not_know_a_number_do_not_count_for_it() -> None:
    unknown = night_of(summary_of_night(6, mean_nearest_distance=None))
    assert alerts(nights=[*USUAL[:6], unknown], mean_nearest_distance=0.5) == ()


def test_spread_of_the_nights_widens_what_is_usual() -> None:
    wild = [
        night_of(summary_of_night(day, num_keep=99 - go, num_remove=go))
        for day, go in enumerate((20, 90, 40, 60, 30, 80, 50))
    ]
    assert alerts(nights=wild, num_keep=89, num_remove=10) == ()


def test_low_recall_is_told() -> None:
    (alert,) = alerts(recall=0.99)
    assert (alert.name, alert.numbers) == ("recall.low", {"recall": 0.99, "min_recall": 0.999})
    assert alert.message == (
        "the clusters honour 0.9900 of the pairs within eps, expected at least 0.999"
    )
    assert alerts(recall=0.999) == ()


def test_incomplete_night_is_told_and_is_no_drift() -> None:
    (alert,) = alerts(is_complete=False, num_unreadable=50, num_keep=25, num_remove=25)
    assert alert.name == "shards.failed"


def test_more_nights_cannot_be_wanted_than_are_looked_at() -> None:
    with pytest.raises(ValidationError, match=r"min_nights must be at most nights \(5\), found 7"):
        AlertSettings(nights=5)
