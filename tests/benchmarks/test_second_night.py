"""The second night is held against the first by the right formula."""

from typing import Any

from benchmarks.second_night import ratios


def night(seconds: float, embedded: int, embed: float) -> dict[str, Any]:
    return {"seconds": seconds, "embedded": embedded, "stages": {"list": 0.5, "embed": embed}}


def test_ratios_of_nights_with_ten_fixed_seconds_and_a_tenth_for_each_image() -> None:
    nights = [night(110.0, 1_000, 104.0), night(20.0, 100, 13.0), night(10.0, 0, 0.0)]
    assert ratios(nights, 100) == {
        "share_of_new": 0.1,
        "second_to_first": 0.1818,
        "times_its_share": 1.82,
        "embedding_times_its_share": 1.25,
        "fixed_seconds": 10.0,
        # 10 + 0.1 * 440 is 1.2 * 0.1 of 10 + 0.1 * 4,400
        "images_for_1.2": 4_400,
    }
