import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.calibration import FloatArray, PrecisionCurve, distance_edges, precision_curve

EDGES = distance_edges(0.05)
CENTERS = np.array([EDGES[1] / 2, *np.sqrt(EDGES[1:-1] * EDGES[2:])])
# Pairs as a night has them: many of neighbouring frames, and far more of unlike images beyond.
COUNTS = np.exp(-0.5 * (np.log(CENTERS / 0.012) / 0.5) ** 2) + np.diff(EDGES**2.5) * 2_000


def curve_of(
    said: dict[float, float], counts: FloatArray = COUNTS, edges: FloatArray = EDGES
) -> PrecisionCurve:
    """The curve after answers: the share of "same" by distance."""
    return precision_curve(np.array([*said]), np.array([*said.values()]), edges, counts)


def test_edges_lie_around_eps_and_have_three_digits() -> None:
    assert len(EDGES) == 62
    assert EDGES[:4].tolist() == [0.0, 0.00625, 0.00662, 0.00702]
    assert EDGES[-3:].tolist() == [0.178, 0.189, 0.2]
    assert 0.05 in EDGES


@given(st.floats(0.0, 1.0).filter(lambda eps: eps == 0 or eps > 1e-6))
def test_edges_increase_and_end_at_one(eps: float) -> None:
    edges = distance_edges(eps)
    assert (np.diff(edges) > 0).all()
    assert edges[-1] <= 1.0


def test_same_everywhere_suggests_the_largest_eps_with_an_honest_interval() -> None:
    curve = curve_of(dict.fromkeys(np.geomspace(0.007, 0.19, 40), 1.0))
    best = curve.best(0.99)
    assert best is not None
    assert curve.eps[best] >= 0.178
    # 40 times "same" leave room for one pair in forty or so that is not.
    assert 0.80 < curve.low[best] < 0.98
    assert curve.high[best] > 0.999


def test_different_everywhere_suggests_nothing() -> None:
    curve = curve_of(dict.fromkeys(np.geomspace(0.007, 0.19, 40), 0.0))
    assert curve.best(0.99) is None
    assert curve.precision[-1] < 0.05


def test_a_clear_boundary_is_found() -> None:
    said = {distance: float(distance < 0.06) for distance in np.geomspace(0.007, 0.19, 40)}
    curve = curve_of(said, np.ones(61))
    best = curve.best(0.99)
    assert best is not None
    assert 0.045 <= curve.eps[best] <= 0.07
    beyond = np.searchsorted(curve.eps, 0.12)
    assert curve.is_same[beyond] < 0.05
    assert curve.precision[beyond] < 0.85


def test_many_near_pairs_do_not_hide_that_most_at_eps_differ() -> None:
    counts = np.ones(61)
    counts[1] = 1e6
    said = {distance: float(distance < 0.06) for distance in np.geomspace(0.007, 0.19, 40)}
    curve = curve_of(said, counts)
    assert curve.precision[-1] > 0.99
    best = curve.best(0.99)
    assert best is not None
    assert curve.eps[best] < 0.07


def test_one_strange_answer_to_a_near_pair_does_not_move_the_boundary() -> None:
    said = {distance: float(distance < 0.1) for distance in np.geomspace(0.007, 0.19, 40)}
    said[[*said][2]] = 0.0
    curve = curve_of(said, np.ones(61))
    is_same = dict(zip(curve.eps.tolist(), curve.is_same.tolist(), strict=True))
    assert is_same[0.05] > 0.95
    assert is_same[0.133] < 0.15
    # But how near the pairs are is no longer a promise either.
    assert curve.precision[0] < 0.995


def test_unsure_lies_between_same_and_different() -> None:
    distances = np.geomspace(0.007, 0.19, 40)
    at_end = [curve_of(dict.fromkeys(distances, share)).precision[-1] for share in (0, 0.5, 1)]
    assert at_end[0] < at_end[1] - 0.2 < at_end[2] - 0.4


def test_without_pairs_an_eps_is_as_precise_as_pairs_would_be() -> None:
    said = {distance: float(distance < 0.06) for distance in np.geomspace(0.007, 0.19, 40)}
    counts = np.zeros(61)
    counts[-1] = 10
    curve = curve_of(said, counts)
    assert curve.precision[0] > 0.99
    assert curve.precision[-1] < 0.05


answers = st.lists(
    st.tuples(st.floats(0.001, 0.3), st.sampled_from([0.0, 0.5, 1.0])), max_size=60
).map(dict)
counts_of_bins = st.lists(st.floats(0, 1e6), min_size=61, max_size=61).map(np.array)


@settings(max_examples=25)
@given(answers, counts_of_bins)
def test_a_larger_eps_is_never_more_precise(said: dict[float, float], counts: FloatArray) -> None:
    curve = curve_of(said, counts)
    for values in (curve.precision, curve.low, curve.high, curve.is_same):
        assert (np.diff(values) <= 1e-9).all()
        assert (values >= 0).all()
        assert (values <= 1).all()
    assert (curve.low <= curve.precision).all()
    assert (curve.precision <= curve.high).all()


@settings(max_examples=25)
@given(answers)
def test_only_the_shares_of_the_counts_and_no_order_of_answers_matter(
    said: dict[float, float],
) -> None:
    curve = curve_of(said)
    other = curve_of(dict(reversed(said.items())), 1e3 * COUNTS)
    np.testing.assert_allclose(curve.precision, other.precision, atol=0.02)
    assert (curve.eps == other.eps).all()


def say(truth: FloatArray, rng: np.random.Generator, num: int) -> PrecisionCurve:
    """Ask a made-up person, whose probability of "same" is known, at evenly spread distances."""
    bins = 1 + (np.arange(num) * 0.6180339887 % 1 * 60).astype(int)
    shares = (rng.random(num) < truth[bins]).astype(float)
    return precision_curve(CENTERS[bins], shares, EDGES, COUNTS)


@pytest.mark.parametrize(
    ("midpoint", "slope", "lapse"),
    [(0.03, 4.0, 0.0), (0.06, 8.0, 0.0), (0.10, 4.0, 0.0), (0.06, 6.0, 0.03)],
)
def test_intervals_hold_what_is_true_of_a_person_whose_boundary_is_known(
    midpoint: float, slope: float, lapse: float
) -> None:
    truth = (1 - lapse) / (1 + (CENTERS / midpoint) ** slope)
    true_precision = (np.cumsum(truth * COUNTS) / np.cumsum(COUNTS))[1:]
    at_eps = int(np.flatnonzero(EDGES[2:] == 0.05)[0])
    within, above, above_suggested, best = 0, 0, 0, []
    for seed in range(25):
        curve = say(truth, np.random.default_rng(seed), 40)
        within += curve.low[at_eps] <= true_precision[at_eps] <= curve.high[at_eps]
        above += curve.low[at_eps] <= true_precision[at_eps]
        suggested = curve.best(0.95)
        if suggested is not None:
            best.append(curve.eps[suggested])
            above_suggested += curve.low[suggested] <= true_precision[suggested]
    assert within >= 20
    # No eps is worse than it was said to be, not even the one that was chosen for its promise.
    assert above >= 23
    assert above_suggested >= len(best) - 2
    reached = np.flatnonzero((true_precision >= 0.95) & (truth[1:] >= 0.5))
    right = EDGES[2:][reached[-1]]
    assert len(best) >= 20
    assert 0.6 * right <= np.median(best) <= 1.4 * right
