"""The figures of the comparison, on answers small enough to count by hand."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rivals import (
    HEADER,
    Answer,
    Cost,
    NoAnswerError,
    count_of_lost_groups,
    count_orphans,
    features_of,
    judge,
    line,
    list_images,
    read_groups,
    watch,
)

# A chain: a is 0.8 like b, b is 0.6 like c, and a is not like c at all. Then d, a copy of a.
CHAIN = np.array([[1, 0], [0.8, 0.6], [0, 1], [1, 0]], np.float32)
IMAGES = ["a", "b", "c", "d"]


def answer(removed: set[str], images: tuple[int, ...] = (0, 1, 2, 3)) -> Answer:
    names = [IMAGES[number] for number in images]
    return Answer("a tool 1.0", names, CHAIN[list(images)], removed, threshold=0.6)


@pytest.mark.parametrize(
    ("removed", "orphans"),
    [("bd", 0), ("bcd", 1), ("acd", 0), ("abcd", 4), ("", 0), ("abd", 2)],
)
def test_orphans_have_no_twin_that_stays(removed: str, orphans: int) -> None:
    is_removed = np.isin(IMAGES, list(removed))
    assert count_orphans(CHAIN, is_removed, 0.6) == orphans


def test_lost_are_all_removed_images_of_a_group_of_which_none_stays() -> None:
    removed = np.array([True, True, True, False, True])
    assert count_of_lost_groups(removed, np.array([0, 0, 1, 1, 2])) == 3


def test_features_come_in_the_order_of_the_images_and_zeros_for_the_unread() -> None:
    features = features_of(answer(set(), images=(2, 0)), IMAGES)
    assert features.tolist() == [CHAIN[0].tolist(), [0, 0], CHAIN[2].tolist(), [0, 0]]


def test_figures_of_an_answer() -> None:
    figures = judge(answer({"b", "c", "d"}), Cost(8.0, 512), IMAGES, np.array([0, 1, 1, 0]))
    assert figures == {
        "tool": "a tool 1.0",
        "seconds": 8.0,
        "images_per_second": 0.5,
        "peak_mib": 512,
        "unread": 0,
        "removed": 3,
        "orphans": 1,
        # b has a and d before c.
        "mean_ap": pytest.approx((1 + 1 / 3 + 1 + 1) / 4),
        "recall_at_precision_99": 0.5,
        # Only a and d: one of one, half of what there is; with the pairs of b: two of four, all.
        "best_f1": pytest.approx(2 / 3),
        "of_lost_groups": 2,
    }


def test_lines_stand_under_their_header() -> None:
    without_groups = judge(answer({"d"}), Cost(8.0, 512), IMAGES, None)
    assert " ".join(line(without_groups).split()) == "a tool 1.0 8.0 0.5 512 - - - 1 0 - 0"
    assert len(line(without_groups)) == len(HEADER)
    failed = line({"tool": "a tool", "error": "no answer within 2 s"})
    assert failed.split("  ")[-1] == "no answer within 2 s"


def test_images_are_those_of_groups_csv_or_the_first_by_path(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.PNG", "c.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_groups(tmp_path, 2) == {}
    assert list_images(tmp_path, 2) == ["a/z.PNG", "b.jpg"]
    (tmp_path / "groups.csv").write_text("path,group\nc.jpg,x\nz.PNG,y\nb.jpg,x\n")
    assert read_groups(tmp_path, 2) == {"c.jpg": "x", "a/z.PNG": "y"}


def test_a_tool_that_fails_or_hangs_gives_no_answer(tmp_path: Path) -> None:
    def run(code: str, timeout: float) -> str:
        return watch([sys.executable, "-c", code], tmp_path, dict(os.environ), timeout)[0]

    assert run("print(1)", 60) == "1\n"
    with pytest.raises(NoAnswerError, match="status 1, last said: no model"):
        run("raise SystemExit('at first\\nno model')", 60)
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
        run("import time; time.sleep(60)", 0.1)
