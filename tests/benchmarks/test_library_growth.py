"""The night beside a growing library is matched with all of it."""

from benchmarks.library_growth import exponent, measure


def test_night_meets_the_whole_library() -> None:
    run = measure(num_kept=10_020, num_images=30)
    assert (run["library"], run["matched"]) == (10_020, 0)


def test_exponent_is_that_of_the_first_and_the_last_size() -> None:
    runs = [{"library": 100, "seconds": 1.0}, {"library": 10_000, "seconds": 10.0}]
    assert exponent(runs) == 0.5
    assert exponent(runs[:1]) is None
