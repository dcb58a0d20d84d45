import json
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.calibrations import (
    Answer,
    Calibration,
    Partition,
    comparable_items,
    conclude,
    profile_lines,
    read_calibration,
    result_rows,
    write_calibration,
)
from tasks.errors import ArtifactError
from tasks.schemas import IMAGES

COUNTS = tuple(float(number) for number in range(61))


def calibration_of(
    boundaries: dict[str, float], num_answers: int = 20, eps: float = 0.05
) -> Calibration:
    """Answers about pairs from 0.008 to 0.18, the same up to a boundary of each partition."""
    distances = [0.008 * 22.5 ** (step / (num_answers - 1)) for step in range(num_answers)]
    return Calibration(
        run_id="night-1",
        eps=eps,
        partitions=tuple(Partition(name=name, num_images=9, counts=COUNTS) for name in boundaries),
        answers=tuple(
            Answer(
                a=f"a{number}",
                b=f"b{number}",
                partition=name,
                distance=distance,
                said="same" if distance <= boundary else "different",
            )
            for name, boundary in boundaries.items()
            for number, distance in enumerate(distances)
        ),
    )


def test_result_tells_the_eps_its_precision_and_what_was_said() -> None:
    result = conclude(calibration_of({"": 0.06}), 0.95)
    assert (result.num_answers, result.num_same, result.num_different) == (20, 13, 7)
    assert result.suggested is not None
    assert 0.05 <= result.suggested.eps <= 0.08
    assert 0.95 <= result.suggested.precision <= 1.0
    assert result.suggested.low < result.suggested.precision < result.suggested.high
    assert result.configured.eps == 0.05
    assert not result.is_at_end
    assert result.partitions == ()
    assert [estimate.eps for estimate in result.curve][::8] == [0.00662, 0.2]
    assert profile_lines(result) == f"neighbors:\n  eps: {result.suggested.eps}\n"
    of_scenes = result.model_copy(update={"setting": "scene_eps"})
    assert profile_lines(of_scenes) == f"neighbors:\n  scene_eps: {result.suggested.eps}\n"


def test_text_for_people() -> None:
    result = conclude(calibration_of({"north": 0.03, "south": 0.1}), 0.9)
    rows = result_rows(result)
    assert rows[:2] == [
        ("run", "night-1"),
        ("answers", "40 (25 same, 15 different, 0 unsure)"),
    ]
    assert [label for label, _ in rows[2:7]] == [
        *("eps for 90 %", "  north", "  south", "eps of this run", "eps")
    ]
    assert rows[3][1].endswith("; 20 answers")
    north, south = (float(rows[number][1].partition(":")[0]) for number in (3, 4))
    assert north < 0.05 < south


def test_each_partition_with_answers_enough_gets_its_own_eps() -> None:
    calibration = calibration_of({"north": 0.03, "south": 0.1, "west": 0.1})
    few = [answer for answer in calibration.answers if answer.partition != "west"]
    some = [answer for answer in calibration.answers if answer.partition == "west"][:11]
    result = conclude(calibration.model_copy(update={"answers": (*few, *some)}), 0.95)
    found = {of_one.partition: of_one.suggested for of_one in result.partitions}
    assert list(found) == ["north", "south"]
    assert found["north"] is not None
    assert found["south"] is not None
    assert 0.02 <= found["north"].eps <= 0.045
    assert 0.07 <= found["south"].eps <= 0.13


def test_nothing_is_suggested_without_answers_or_when_all_differ() -> None:
    for calibration in (
        calibration_of({"": 0.0}),
        calibration_of({"": 0.05}).model_copy(update={"answers": ()}),
    ):
        result = conclude(calibration, 0.99)
        assert result.suggested is None
        assert profile_lines(result) == ""
        assert dict(result_rows(result))["eps for 99 %"].startswith("none of those asked about")


def test_the_largest_eps_may_not_be_the_last_word() -> None:
    result = conclude(calibration_of({"": 1.0}), 0.9)
    assert result.is_at_end
    assert "a larger one may do too" in dict(result_rows(result))["eps for 90 %"]


def test_answers_come_back_as_they_were_written(place: str) -> None:
    calibration = calibration_of({"north <img>": 0.03, "": 0.1})
    url = f"{place}/calibration.json"
    with pytest.raises(FileNotFoundError):
        read_calibration(url)
    write_calibration(url, calibration)
    assert read_calibration(url) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"format": "image-dedup calibration 2"},
        {"eps": "0.05"},
        {"extra": 1},
        {"answers": [{"a": "x"}]},
        {"partitions": [{"name": "", "num_images": 9, "counts": [1.0]}]},
        {"partitions": [{"name": "", "num_images": 9, "counts": [-1.0] * 61}]},
        {"partitions": [{"name": "", "num_images": 9, "counts": []}]},
    ],
)
def test_what_are_no_answers_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "calibration.json"
    whole = json.loads(calibration_of({"": 0.05}).model_dump_json())
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ArtifactError, match="found something else"):
        read_calibration(str(path))
    path.write_bytes(b"\xff no json")
    with pytest.raises(ArtifactError, match="found something else"):
        read_calibration(str(path))


def test_only_images_with_a_feature_of_their_own_are_compared() -> None:
    row = {"image_id": "i", "url": "u", "size_bytes": 1, "etag": "e", "captured_at": 0}
    images = pa.Table.from_pylist(
        [
            row | {"camera": "south", "item_id": 3},
            row | {"camera": "north", "item_id": 1},
            row | {"camera": "north", "item_id": 0},
            row | {"camera": "north", "item_id": 2, "stands_on": "another"},
            row | {"camera": "north", "item_id": None, "error": "unreadable"},
        ],
        IMAGES,
    )
    items_of = {name: items.tolist() for name, items in comparable_items(images).items()}
    assert items_of == {"north": [0, 1], "south": [3]}
    assert comparable_items(images.slice(4)) == {}
