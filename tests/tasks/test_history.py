"""The nights of a workspace, read back from what their runs have left."""

from datetime import timedelta
from pathlib import Path

import pytest

from tasks import storage
from tasks.history import (
    Acted,
    Night,
    comparable_nights,
    latest_decisions,
    night_of,
    read_alerts,
    read_history,
    stream_of,
    trends_of,
)
from tasks.summary import Alert
from tests.written_summaries import START, summary_of_night, write_apply, write_summary


def days(nights: list[Night]) -> list[str]:
    return [night.source_url.rpartition("/")[2] for night in nights]


def usual_nights(num_nights: int, **changes: object) -> list[Night]:
    return [night_of(summary_of_night(day, **changes)) for day in range(num_nights)]


def test_night_is_a_row() -> None:
    alert = Alert(name="drift", message="far")
    assert night_of(summary_of_night(1, alerts=[alert])).model_dump() == {
        "run_id": "2026-03-02-0000000000000001",
        "source_url": "s3://cameras/2026-03-02",
        "stream": "s3://cameras/*",
        "night": "s3://cameras/2026-03-02",
        "executed_at": START + timedelta(days=1),
        "settings_digest": "settings",
        "num_images": 100,
        "num_new": 80,
        "num_keep": 39,
        "num_remove": 60,
        "removed_share": 0.606061,
        "unreadable_share": 0.01,
        "mean_nearest_distance": 0.02,
        "recall": 1.0,
        "is_complete": True,
        "seconds": 40.0,
        "seconds_per_new_image": 0.5,
        "alerts": ("drift",),
        "report_url": "s3://cameras/r.html",
        "acted": None,
    }


def test_night_without_images_has_no_shares() -> None:
    empty = {"num_images": 0, "num_keep": 0, "num_remove": 0, "num_embedded": 0, "seconds": {}}
    night = night_of(summary_of_night(0, **empty))
    assert (night.removed_share, night.unreadable_share) == (None, None)
    assert (night.seconds, night.seconds_per_new_image) == (None, None)


@pytest.mark.parametrize(
    ("source_url", "stream"),
    [
        ("s3://cameras/2026-02-28", "s3://cameras/*"),
        ("/images/20260228/north", "/images/*/north"),
        ("/images/2026/02/28", "/images/*"),
        ("/2026_02_28/2026.02.28", "/*/*"),
        ("/images/2026-13-28", "/images/2026-13-28"),
        ("/images/2026-02/28", "/images/2026-02/28"),
        ("/images/120260228", "/images/120260228"),
        ("/images/incoming", "/images/incoming"),
    ],
)
def test_stream_is_the_source_without_dates(source_url: str, stream: str) -> None:
    assert stream_of(source_url) == stream


def test_history_is_in_the_order_of_time_whatever_was_decided_when(place: str) -> None:
    for day in (3, 1, 2):
        write_summary(place, day, executed_at=START - timedelta(days=day))
    write_summary(place, 0, run_id="north-1", source_url="s3://a/2026-03-01")
    known = read_history(place)
    assert [night.source_url for night in known.nights] == [
        *("s3://a/2026-03-01", "s3://cameras/2026-03-02"),
        *("s3://cameras/2026-03-03", "s3://cameras/2026-03-04"),
    ]
    assert known.problems == {}


def test_what_cannot_be_read_is_a_problem_and_no_more(place: str) -> None:
    write_summary(place, 1)
    runs = storage.join(place, "runs")
    for name, content in {
        "cut/summary.json": b'{"run_id": "cut',
        "empty/summary.json": b"",
        "unfinished/manifest.parquet": b"PAR1",
        "latin/summary.json": b'{"run_id": "\xff"}',
        "moved/summary.json": summary_of_night(2).model_dump_json().encode(),
        "file": b"no folder",
    }.items():
        storage.publish_bytes(storage.join(runs, name), content)
    known = read_history(place)
    assert days(known.nights) == ["2026-03-02"]
    assert sorted(known.problems) == ["cut", "empty", "file", "latin", "moved", "unfinished"]
    assert "has not finished" in known.problems["unfinished"]
    assert "expected a summary of this version" in known.problems["cut"]
    assert "found '2026-03-03-0000000000000002'" in known.problems["moved"]


def test_workspace_without_runs_has_no_history(place: str) -> None:
    assert read_history(storage.join(place, "nowhere")).nights == []


def test_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    new = {"executed_at", "night_id", "settings_digest", "mean_nearest_distance", "alerts"}
    old = summary_of_night(1).model_dump_json(exclude=new)
    path = tmp_path / "runs" / "2026-03-02-0000000000000001" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(old)
    (night,) = read_history(str(tmp_path)).nights
    assert (night.executed_at, night.mean_nearest_distance, night.alerts) == (None, None, ())


class TestActing:
    def test_last_thing_done_with_a_manifest_is_told(self, place: str) -> None:
        run_id = write_summary(place, 1).run_id
        write_apply(place, run_id, ended={"done": "58", "left": "2"})
        (night,) = read_history(place, with_applies=True).nights
        assert night.acted == Acted(operation="quarantine", has_ended=True, num_done=58, num_left=2)
        assert read_history(place).nights[0].acted is None

    def test_apply_that_was_stopped_has_no_counts(self, place: str) -> None:
        run_id = write_summary(place, 1).run_id
        write_apply(place, run_id)
        (night,) = read_history(place, with_applies=True).nights
        assert night.acted == Acted(
            operation="quarantine", has_ended=False, num_done=None, num_left=None
        )

    @pytest.mark.parametrize("ended", [{}, {"done": "many", "left": "-1"}])
    def test_journal_that_does_not_count_has_no_counts(
        self, tmp_path: Path, ended: dict[str, str]
    ) -> None:
        run_id = write_summary(str(tmp_path), 1).run_id
        write_apply(str(tmp_path), run_id, "undo", ended=ended)
        (night,) = read_history(str(tmp_path), with_applies=True).nights
        assert night.acted == Acted(operation="undo", has_ended=True, num_done=None, num_left=None)

    def test_damaged_journal_is_a_problem_and_the_night_stays(self, place: str) -> None:
        run_id = write_summary(place, 1).run_id
        url = write_apply(place, run_id)
        storage.publish_bytes(storage.join(url, "000001.jsonl"), b"{}")
        known = read_history(place, with_applies=True)
        assert days(known.nights) == ["2026-03-02"]
        assert "000001.jsonl" in known.problems[run_id]


class TestLatestDecisions:
    def test_night_with_a_date_is_its_source(self) -> None:
        first, again = (
            night_of(summary_of_night(1, run_id=name, night_id=name, executed_at=at))
            for name, at in (("first", START), ("again", START + timedelta(hours=1)))
        )
        other = night_of(summary_of_night(2))
        assert latest_decisions([again, first, other]) == [again, other]

    def test_night_without_a_date_is_its_listing(self) -> None:
        same = {"source_url": "/incoming"}
        first, again, other = (
            night_of(summary_of_night(day, night_id=listing, **same))
            for day, listing in ((1, "a"), (2, "a"), (3, "b"))
        )
        assert latest_decisions([first, again, other]) == [again, other]


class TestComparableNights:
    def test_are_the_last_ones_before(self) -> None:
        nights = usual_nights(9)
        assert days(comparable_nights(nights[5], nights, 3)) == [
            *("2026-03-03", "2026-03-04", "2026-03-05")
        ]

    @pytest.mark.parametrize(
        "changes",
        [
            {"is_complete": False},
            {"settings_digest": "other"},
            {"source_url": "s3://other/2026-03-02"},
            {"source_url": "s3://cameras/2026-03-09"},
        ],
    )
    def test_are_complete_of_the_same_stream_and_settings_and_earlier(
        self, changes: dict[str, object]
    ) -> None:
        night = night_of(summary_of_night(4))
        other = night_of(summary_of_night(1, **changes))
        assert comparable_nights(night, [other, night], 14) == []

    def test_do_not_hold_an_earlier_decision_of_the_same_night(self) -> None:
        now = night_of(summary_of_night(1, run_id="now", executed_at=START + timedelta(days=9)))
        before = night_of(summary_of_night(1, run_id="before"))
        assert comparable_nights(now, [before], 14) == []

    def test_of_a_folder_that_grows_follow_their_decisions(self) -> None:
        nights = usual_nights(3, source_url="/incoming")
        assert comparable_nights(nights[2], nights, 14) == nights[:2]


def test_trends_hold_the_last_night_against_those_before() -> None:
    nights = usual_nights(4)
    nights.append(night_of(summary_of_night(4, num_images=200, mean_nearest_distance=None)))
    trends = {trend.measure: trend for trend in trends_of(nights, 3)}
    assert (trends["num_images"].latest, trends["num_images"].median) == (200, 100.0)
    assert trends["num_images"].earlier == [100.0, 100.0, 100.0]
    assert trends["mean_nearest_distance"].latest is None
    assert trends["mean_nearest_distance"].median == 0.02
    assert trends_of(nights[:1], 3)[0].median is None


def test_alerts_of_a_run_are_read_from_its_summary(place: str) -> None:
    alert = Alert(name="drift", message="far", numbers={"median": 0.5})
    run_id = write_summary(place, 1, alerts=[alert]).run_id
    manifest_url = storage.join(place, "runs", run_id, "manifest.parquet")
    assert read_alerts(manifest_url, run_id) == (alert,)
    assert read_alerts(manifest_url, "another") == ()
    assert read_alerts(storage.join(place, "runs", "none", "manifest.parquet"), "none") == ()
