"""Nights of cameras: each frame is new once, and what goes wrong is the same every time."""

from collections import Counter
from datetime import date
from pathlib import Path

from benchmarks.deliveries import Delivery, deliver, frames_of, plan_deliveries, plan_frames
from tests.conftest import Night

DAYS = [date(2026, 3, day) for day in range(10, 15)]
JUNCTIONS = [f"junction-{number}" for number in range(1, 5)]


def nights_of(night: Night) -> list[list[Delivery]]:
    return plan_deliveries(frames_of(night.folder, JUNCTIONS), DAYS)


def test_each_frame_is_new_or_late_once(night: Night) -> None:
    frames = frames_of(night.folder, JUNCTIONS)

    firsts = [one.path for some in nights_of(night) for one in some if one.kind in ("new", "late")]

    expected = [f"{camera}/{path.name}" for camera, paths in frames.items() for path in paths]
    assert sorted(firsts) == sorted(expected)


def test_every_kind_of_trouble_comes(night: Night) -> None:
    kinds = Counter(one.kind for some in nights_of(night) for one in some)

    assert kinds == {"new": 19, "late": 3, "copy": 10, "again": 8, "edited": 10, "broken": 1}


def test_nights_are_the_same_every_time_and_name_no_file_twice(night: Night) -> None:
    nights = nights_of(night)

    assert nights == nights_of(night)
    for some in nights:
        assert len({one.path for one in some}) == len(some)


def test_frames_come_in_their_order_with_their_times(night: Night, tmp_path: Path) -> None:
    frames = frames_of(night.folder, ["junction-1"], at_most=4)
    nights = plan_frames(frames, DAYS[:2])

    deliver(tmp_path, [one for some in nights for one in some])

    assert [[one.path for one in some] for some in nights] == [
        ["junction-1/000.jpg", "junction-1/001.jpg"],
        ["junction-1/003.jpg", "junction-1/004.jpg"],
    ]
    first, last = tmp_path / "junction-1" / "000.jpg", tmp_path / "junction-1" / "004.jpg"
    assert last.stat().st_mtime - first.stat().st_mtime == 24 * 3600 + 3 * 60
    assert first.read_bytes() == frames["junction-1"][0].read_bytes()
