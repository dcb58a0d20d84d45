"""The demo's photographs as one night and as two: what each split leaves behind."""

from datetime import date
from pathlib import Path

import pytest

from benchmarks.deliveries import frames_of, plan_frames
from benchmarks.night_by_night import bounds, compare_splits
from tests.conftest import Night

CAMERAS = ("junction-1", "junction-2", "junction-8")


@pytest.mark.usefixtures("prefect_server")
def test_splits_leave_no_orphans_and_keep_nothing_again(night: Night, tmp_path: Path) -> None:
    frames = frames_of(night.folder, CAMERAS)
    (images,) = plan_frames(frames, [date(2026, 3, 10)])

    runs = compare_splits(tmp_path, images, (1, 2), image_size=64)

    assert [(run["nights"], run["order"]) for run in runs] == [
        *((1, "in-order"), (2, "in-order"), (2, "shuffled"))
    ]
    for run in runs:
        assert (run["orphans"], run["kept_again"], run["undecided"]) == (0, 0, 0)
    # Of 15 photographs and one copy, two scenes and four photographs stay, in however many nights.
    assert {run["kept"] for run in runs} == {6}
    assert (runs[0]["removed"], runs[-1]["removed"]) == (10, 11)
    low, high = bounds(tmp_path / "1-in-order", eps=0.05)
    assert low <= 6 <= high
