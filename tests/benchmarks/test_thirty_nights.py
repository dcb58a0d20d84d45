"""A few nights through a real server and worker, in which everything goes wrong that can."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.deliveries import frames_of
from benchmarks.thirty_nights import Script, run_nights, trend
from tests.conftest import Night

JUNCTIONS = [f"junction-{number}" for number in (1, 2, 3, 8)]


@pytest.mark.slow
def test_nights_that_are_killed_deleted_and_run_again(night: Night, tmp_path: Path) -> None:
    script = Script(killed_embedding=2, keeper_deleted=3, run_again=4, killed_applying=5)

    figures = run_nights(
        tmp_path, frames_of(night.folder, JUNCTIONS), 5, image_size=64, script=script
    )

    assert figures["problems"] == []
    happened = {line["night"]: line["happened"] for line in figures["nights"] if line["happened"]}
    assert "Crashed, retried" in happened[2]
    assert happened[3] == "apply Failed, 3 left alone, pruned, retried"
    assert "late images" in happened[4]
    assert happened[5].startswith("worker killed when ")


def test_trend_of_costs_that_rise_by_a_tenth_of_their_mean() -> None:
    assert trend(np.arange(1, 10), [6.0, 7, 8, 9, 10, 11, 12, 13, 14]) == {
        "mean": 10.0,
        "slope_percent": 10.0,
        "error_percent": 0.0,
        "last_to_first_third": round(13 / 7, 3),
    }
