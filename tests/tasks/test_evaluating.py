"""The scores of a run: counted by hand, and the sweep decides as the run did."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from tasks import evaluating, storage
from tasks.errors import ArtifactError
from tasks.evaluating import (
    Evaluation,
    choose_groups,
    evaluate,
    evaluation_rows,
    exact_labels,
    sweep_lines,
)
from tasks.stage07_cluster_images import number_by_first_appearance
from tests.made_items import all_distances, eps_for, feature_sets
from tests.made_runs import MadeRun, make_run

# At eps 0.05 two images are twins when at most 18 degrees lie between them.
DEGREES = {
    "a/0.png": 0,
    "a/1.png": 5,
    "a/2.png": 40,
    "b/0.png": 45,
    "b/1.png": 120,
    "c/0.png": 200,
    "unnamed.png": 205,
    "broken.png": 0,
}
GROUPS = {
    "a/0.png": "a",
    "a/1.png": "a",
    "a/2.png": "a",
    "b/0.png": "b",
    "b/1.png": "b",
    "c/0.png": "c",
    "broken.png": "c",
    "elsewhere.png": "c",
}


def scores_of(made: MadeRun, groups: dict[str, str], **options: bool) -> Evaluation:
    url = storage.join(made.workspace_url, "groups.csv")
    lines = ["path,group", *(f"{path},{group}" for path, group in groups.items())]
    storage.publish_bytes(url, "\n".join(lines).encode())
    return evaluate(url, run_id=made.run_id, workspace_url=made.workspace_url, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    contents = {"broken.png": b"no image"}
    return make_run(str(tmp_path_factory.mktemp("made")), DEGREES, contents=contents)


def test_run_is_scored_and_nothing_is_dropped_in_silence(made: MadeRun) -> None:
    found = scores_of(made, GROUPS)
    scores = found.scores
    assert (found.num_images, found.num_groups, found.num_unnamed) == (6, 3, 1)
    assert (found.num_unreadable, found.num_unknown) == (1, 1)
    assert found.not_scored == ("elsewhere.png", "broken.png")
    # Clusters: a/0 a/1, then a/2 b/0, then c/0 with the unnamed one. Groups: a 3, b 2, c 1.
    assert (scores.precision.value, scores.recall.value) == (1 / 2, 1 / 4)
    assert scores.f1.value == 2 / 6
    # One of each pair goes; of 6 images in 3 groups, 3 could.
    assert scores.num_remove - scores.num_unjudged == 2
    assert (scores.removal_precision.value, scores.removal_recall.value) == (1 / 2, 1 / 3)
    assert scores.num_orphans == 1
    assert found.sweep == ()


def test_removals_by_unnamed_keepers_are_counted_apart(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 1, "2.png": 2, "3.png": 3, "4.png": 90})
    manifest = evaluating.open_run(made.workspace_url, made.run_id).manifest.table.to_pylist()
    removed = [row["url"] for row in manifest if row["action"] == "remove"]
    assert len(removed) == 3
    scores = scores_of(made, dict.fromkeys(removed, "x") | {made.url("4.png"): "y"}).scores
    assert (scores.num_remove, scores.num_unjudged, scores.num_orphans) == (3, 3, 0)
    assert scores.removal_precision.value is None
    assert scores.num_lost_groups == 1
    assert scores.recall.value == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clusters": {"keepers": "first"}},
        {"clusters": {"min_samples": 3}},
        {"source": {"partition_by": r"([ab])\.png$"}},
        {"neighbors": {"eps": 0.3}},
    ],
    ids=str,
)
def test_sweep_decides_at_the_runs_eps_as_the_run_did(
    settings: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    degrees = {f"{n:02}/{'ab'[n % 2]}.png": angle for n, angle in enumerate(range(0, 340, 7))}
    made = make_run(str(tmp_path), degrees, **settings)
    found = scores_of(made, {path: str(n // 4) for n, path in enumerate(degrees)}, with_sweep=True)
    [again] = [scores for scores in found.sweep if scores.eps == found.scores.eps]
    assert again == found.scores
    assert [scores.eps for scores in found.sweep][:1] == [0.005]
    assert found.sweep[-1].eps == 0.3


def test_perfect_run_has_perfect_scores_and_intervals(tmp_path: Path) -> None:
    degrees = {f"{group}/{n}.png": 30 * group + n for group in range(5) for n in range(3)}
    made = make_run(str(tmp_path), degrees)
    found = scores_of(made, {path: path[0] for path in degrees})
    perfect = {"value": 1.0, "low": 1.0, "high": 1.0}
    scores = found.scores
    for estimate in (
        *(scores.precision, scores.recall, scores.f1, scores.adjusted_rand),
        *(scores.removal_precision, scores.removal_recall, scores.removal_f1),
        found.mean_average_precision,
    ):
        assert estimate.model_dump() == perfect
    assert (scores.num_clusters, scores.num_remove, scores.num_lost_groups) == (5, 10, 0)


def test_of_too_many_images_whole_groups_are_compared(
    made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "MAX_COMPARED", 4)
    found = scores_of(made, GROUPS, with_sweep=True)
    assert (found.num_images, found.num_compared) in {(6, 3), (6, 4)}
    assert found.scores.precision.value == 1 / 2
    assert any("whole groups drawn at random" in value for _, value in evaluation_rows(found))


def test_drawn_groups_are_whole_and_fit() -> None:
    groups = np.repeat(np.arange(5), [4, 1, 3, 2, 5])
    for seed in range(10):
        chosen = choose_groups(groups, 9, seed=seed)
        assert 0 < len(chosen) <= 9
        for group in set(groups[chosen]):
            assert (groups[chosen] == group).sum() == (groups == group).sum()
    assert choose_groups(groups, 15, seed=0).tolist() == list(range(15))
    with pytest.raises(ArtifactError, match="more than the 9 images"):
        choose_groups(np.zeros(10, np.int64), 9, seed=0)


def test_same_call_gives_the_same_intervals(made: MadeRun) -> None:
    assert scores_of(made, GROUPS) == scores_of(made, GROUPS)


def test_groups_of_unreadable_images_only_are_refused(made: MadeRun) -> None:
    with pytest.raises(ArtifactError, match="could read none of the images"):
        scores_of(made, {"broken.png": "x"})


@given(feature_sets(), st.data(), st.sampled_from([1, 2, 3, 4]))
def test_labels_are_those_of_scikit_learn(
    features: np.ndarray, data: st.DataObject, min_samples: int
) -> None:
    eps = data.draw(eps_for(features))
    end = data.draw(st.integers(0, len(features)))
    partitions = [(0, end), (end, len(features))]
    partitions = [(start, stop) for start, stop in partitions if stop > start]
    distances = all_distances(features).astype(np.float64)
    distances[:end, end:] = distances[end:, :end] = 3.0
    model = DBSCAN(eps=max(eps, 5e-324), min_samples=min_samples, metric="precomputed")
    expected = model.fit_predict(distances)
    found = exact_labels(features, partitions, eps=eps, min_samples=min_samples)
    assert found.tolist() == number_by_first_appearance(expected.astype(np.int32)).tolist()


def test_text_says_it_all(made: MadeRun) -> None:
    found = scores_of(made, GROUPS, with_sweep=True)
    rows = dict(evaluation_rows(found))
    assert rows["not scored"] == (
        "1 readable images of the run have no group; 1 names are no image of the run; "
        "1 images with a group are unreadable"
    )
    assert rows[""] == "'elsewhere.png', 'broken.png'"
    assert rows["pairs in one cluster"].startswith("precision 0.500 ")
    assert rows["orphan removals"].startswith("1: ")
    # From 40 degrees on one keeper stands for all of a/0 to b/0, and two of three are its own; but
    # a/2 and b/0 are 5 degrees apart, as near as a/0 and a/1.
    assert rows["in the sweep"].startswith("best F1 of removals 0.667 ")
    assert " at eps 0.2629; " in rows["in the sweep"]
    assert rows["in the sweep"].endswith("; no orphan removals at no eps")
    [marked] = [line for line in sweep_lines(found) if "*" in line]
    assert marked.startswith("0.05  * 0.500 ")
