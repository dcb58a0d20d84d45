"""Events, read back from a real server."""

from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES, temporary_settings

from flows.events import tell_failed_shards, tell_night, told_of_guards
from tasks.errors import GuardError, LockHeldError
from tasks.summary import Alert
from tests.told_events import told_events
from tests.written_summaries import summary_of_night

pytestmark = pytest.mark.usefixtures("prefect_server")

HOSTILE = '<img onerror="x">\n\u202eً{{ event }}'


def told_in_a_flow(tell: Callable[[], None], *names: str) -> list[dict[str, Any]]:
    """Tell something the way a run does, and read what it has told."""
    state = flow(name="tells")(tell)(return_state=True)
    return told_events(*names, flow_run_id=state.state_details.flow_run_id)


def test_night_is_told_with_its_numbers(caplog: pytest.LogCaptureFixture) -> None:
    alert = Alert(name="drift", message=HOSTILE, numbers={"median": 0.5})
    summary = summary_of_night(1, alerts=[alert])
    events = told_in_a_flow(lambda: tell_night(summary), "drift", "night.finished")
    payloads = {event["event"]: event["payload"] for event in events}
    about = {
        "run_id": summary.run_id,
        "source_url": "s3://cameras/2026-03-02",
        "manifest_url": "s3://cameras/m.parquet",
        "report_url": "s3://cameras/r.html",
    }
    assert payloads == {
        "image-dedup.drift": about | {"message": HOSTILE, "median": 0.5},
        "image-dedup.night.finished": about
        | {
            "message": "100 images: 39 stay, 60 go",
            "num_images": 100,
            "num_unreadable": 1,
            "num_keep": 39,
            "num_remove": 60,
            "num_orphans": 0,
            "num_embedded": 80,
            "recall": 1.0,
            "is_complete": True,
            "alerts": ["drift"],
        },
    }
    assert HOSTILE in caplog.messages


def test_failed_shards_are_told() -> None:
    (event,) = told_in_a_flow(
        lambda: tell_failed_shards("2 of 9", "s3://n", num_failed=2, num_untried=1, num_images=192),
        "shards.failed",
    )
    assert event["payload"] == {
        "message": "2 of 9",
        "source_url": "s3://n",
        "num_failed": 2,
        "num_untried": 1,
        "num_images": 192,
    }


def test_guard_is_told_and_still_refuses() -> None:
    def refuse() -> None:
        with told_of_guards("s3://w/runs/night-1/manifest.parquet"):
            raise GuardError("too many")

    def refuse_and_go_on() -> None:
        with pytest.raises(GuardError, match="too many"):
            refuse()

    (event,) = told_in_a_flow(refuse_and_go_on, "guard.tripped")
    assert event["payload"] == {
        "message": "too many",
        "manifest_url": "s3://w/runs/night-1/manifest.parquet",
        "report_url": "s3://w/runs/night-1/report/index.html",
    }


def test_other_errors_are_no_guards(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LockHeldError), told_of_guards("s3://w/m.parquet"):
        raise LockHeldError("held")
    assert caplog.messages == []


def test_event_that_cannot_be_sent_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_settings({PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES: 10}):
        flow(name="tells")(lambda: tell_night(summary_of_night(1)))()
    assert any("event night.finished not sent: EventTooLarge" in line for line in caplog.messages)
