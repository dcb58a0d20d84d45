"""The camera table: situations are read, laid out and counted as they are labelled."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.cameras import as_text, lay_out, modes, motion_of, read_situations


def test_situations_are_those_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "gt_foreground.csv").write_text(
        "path,moving_px,moving_frac_of_roi\ninput/1.jpg,3,0.004\ninput/2.jpg,9,0.5\n"
    )
    assert read_situations(tmp_path) == [
        (tmp_path / "input/1.jpg", "up to 0.5 % moves"),
        (tmp_path / "input/2.jpg", "more"),
    ]
    (tmp_path / "groups.csv").write_text("path,group\nframes/1.jpg,empty\n")
    assert read_situations(tmp_path) == [(tmp_path / "frames/1.jpg", "empty")]


@pytest.mark.parametrize(("share", "name"), [(0.005, "up to 0.5 % moves"), (0.03, "to 3 %")])
def test_motion_has_limits(share: float, name: str) -> None:
    assert motion_of(share) == name


def test_some_frames_are_there_in_other_light(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.new("RGB", (8, 8), (100, 200, 0)).save(path)

    found = lay_out([(path, "empty") for path in paths], tmp_path / "source", dim=2)

    assert Counter(found.values()) == {"empty": 3, "empty, other light": 4}
    darker = np.asarray(Image.open(tmp_path / "source/000000-darker.jpg"))
    assert np.abs(darker[0, 0] - [70.0, 140, 0]).max() < 4


def test_region_is_a_mode_only_when_it_is_given() -> None:
    assert list(modes(None)) == ["whole image", "scene"]
    assert modes([0, 0.5, 1, 1])["scene of region"] == {
        "compare": "scene",
        "region": [0, 0.5, 1, 1],
    }


def test_table_has_a_row_for_each_situation() -> None:
    mode = {"kept": {"car": 2}, "eps": 0.03, "quiet_p99": 0.01}
    mode["num_for_a_quiet_one"] = {"0.01": 0, "0.03": 1}
    text = as_text("road", Counter(empty=5, car=3), {"scene": mode})
    assert text.splitlines() == [
        "road: 8 frames",
        "",
        "| situation | frames | scene |",
        "| --- | ---: | ---: |",
        "| empty | 5 | 0 |",
        "| car | 3 | 2 |",
        "| all | 8 | 2 |",
        "| eps | | 0.03 |",
        "| 99 % of quiet pairs are within | | 0.01 |",
        "| others within .01, .02, .03, .05 of a quiet one | | 0, 1 |",
    ]
