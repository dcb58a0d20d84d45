"""Verdicts correct the keepers, and every image that goes still has a living twin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.comparisons import connect
from tasks.distances import within
from tasks.stage07_cluster_images import are_large, dbscan_labels
from tasks.stage08_choose_keepers import cover_keepers, first_keepers
from tasks.stage08c_heed_reviews import Said, heed, rows_that_stay
from tests.made_items import all_distances, eps_for, feature_sets

EPS = 1 - np.cos(np.radians(10.5))
"""Items up to ten degrees apart are twins."""


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def said(
    num_items: int,
    *,
    contents: list[int] | None = None,
    stays: tuple[int, ...] = (),
    meant: tuple[int, ...] = (),
    scenes: tuple[tuple[int, ...], ...] = (),
    apart: tuple[tuple[int, int], ...] = (),
    instead: tuple[tuple[int, int], ...] = (),
) -> Said:
    """What was said; all but `meant` name contents, which are the items unless said otherwise."""
    of_items = np.arange(num_items) if contents is None else np.array(contents)
    scene_of = np.full(num_items, -1, np.int32)
    for number, scene in enumerate(scenes):
        scene_of[np.isin(of_items, scene)] = number
    return Said(
        contents=of_items.astype(np.int64),
        stays=np.isin(of_items, stays),
        is_meant=np.isin(np.arange(num_items), meant),
        scene_of=scene_of,
        apart=np.array(apart, np.int64).reshape(-1, 2),
        instead=np.array(instead, np.int64).reshape(-1, 2),
    )


def heeded(degrees: list[float], keeper_of: list[int], **words: Any) -> list[int]:
    """Heed what was said of one cluster; the lower the item, the better the image."""
    num_items = len(degrees)
    found = heed(
        np.array(keeper_of),
        np.zeros(num_items, np.int32),
        np.arange(num_items),
        angles(*degrees),
        said(num_items, **words),
        eps=EPS,
    )
    return found.tolist()


def test_without_verdicts_nothing_changes() -> None:
    assert heeded([0, 5, 5], [-1, 0, 0]) == [-1, 0, 0]


def test_no_duplicate_stays_and_is_no_keeper_for_what_it_is_apart_from() -> None:
    assert heeded([0, 5, 9], [-1, 0, 0], stays=(1,), apart=((0, 1),)) == [-1, -1, 0]
    # 0 has lost its keeper to somebody's stead, and may not go for 1 although that is the nearest.
    words: dict[str, Any] = {"stays": (1, 2), "apart": ((0, 1),), "instead": ((2, 0),)}
    assert heeded([0, 5, 9], [-1, 0, 0], **words) == [2, -1, -1]


def test_copy_of_what_stays_goes_for_it_and_for_nothing_else() -> None:
    words: dict[str, Any] = {"contents": [0, 1, 1], "stays": (1,), "apart": ((0, 1),)}
    assert heeded([0, 5, 5], [-1, 0, 0], **words) == [-1, -1, 1]
    assert heeded([0, 5, 5], [-1, 0, 0], **words, meant=(2,)) == [-1, 2, -1]
    assert heeded([0, 5, 5], [-1, 0, 0], **words, meant=(1, 2)) == [-1, -1, -1]


def test_chosen_one_takes_the_place_of_its_keeper() -> None:
    # 0 goes for 1, and so does 2; 3 is near neither, so it stays.
    words: dict[str, Any] = {"stays": (1,), "instead": ((1, 0),)}
    assert heeded([0, 5, 9, -9], [-1, 0, 0, 0], **words) == [1, -1, 1, -1]


def test_what_has_lost_its_keeper_is_covered_anew() -> None:
    words: dict[str, Any] = {"stays": (1,), "instead": ((1, 0),)}
    assert heeded([0, 5, -9, -9.5, -8], [-1, 0, 0, 0, 0], **words) == [1, -1, -1, 2, 2]


def test_keeper_beyond_eps_of_the_chosen_one_stays() -> None:
    # As `first` keepers may be.
    assert heeded([0, 20], [-1, 0], stays=(1,), instead=((1, 0),)) == [-1, -1]


def test_keeper_beyond_eps_of_the_chosen_one_does_not_go_for_a_third() -> None:
    assert heeded([0, 20, 9], [-1, 0, -1], stays=(1,), instead=((1, 0),)) == [-1, -1, -1]


def test_copy_that_is_kept_anyhow_stays_and_not_a_better_one_too() -> None:
    assert heeded([0, 0], [1, -1], contents=[0, 0], stays=(0,)) == [1, -1]


def test_exact_copy_that_is_chosen_stays_instead_of_the_other() -> None:
    words: dict[str, Any] = {"contents": [0, 0, 1], "stays": (0,), "instead": ((0, 0),)}
    assert heeded([0, 0, 5], [-1, 0, 0], **words, meant=(1,)) == [1, -1, 1]


def test_all_that_are_kept_stay() -> None:
    words: dict[str, Any] = {"stays": (0, 1, 2), "meant": (0, 1, 2)}
    assert heeded([0, 5, 9], [-1, 0, 0], **words) == [-1, -1, -1]


def test_of_a_scene_the_best_keeper_stays_for_all() -> None:
    keeper_of = [-1, 0, -1, 2]
    assert heeded([0, 5, 20, 25], keeper_of, scenes=((0, 1, 2, 3),)) == [-1, 0, 0, 0]
    # Of no keeper's scene: it stays what it was, and so does who goes for it.
    assert heeded([0, 5, 20, 25], keeper_of, scenes=((0, 1),)) == keeper_of


def test_in_a_scene_what_a_person_chose_is_the_keeper_of_all() -> None:
    words: dict[str, Any] = {"scenes": ((0, 1, 2, 3),), "stays": (3,), "instead": ((3, 2),)}
    assert heeded([0, 5, 20, 25], [-1, 0, -1, 2], **words) == [3, 3, 3, -1]


def test_in_a_scene_a_twin_is_better_than_its_keeper_far_away() -> None:
    # 3 is new: nobody has said that it is of the scene, and so it stays for 2.
    assert heeded([0, 5, 20, 22], [-1, 0, -1, -1], scenes=((0, 1, 2),)) == [-1, 0, 3, -1]


def test_who_went_for_one_of_a_scene_but_is_none_of_it_stays_as_its_twin() -> None:
    assert heeded([0, 20, 25], [-1, -1, 1], scenes=((0, 1),)) == [-1, 2, -1]


def test_each_cluster_has_its_own_eps() -> None:
    found = heed(
        np.array([-1, 0, -1, 2]),
        np.array([0, 0, 1, 1], np.int32),
        np.arange(4),
        angles(0, 9, 0, 9),
        said(4, stays=(1, 3), meant=(1, 3), instead=((1, 0), (3, 2))),
        eps=np.array([EPS, EPS, EPS / 2, EPS / 2]),
    )

    assert found.tolist() == [1, -1, -1, -1]


def test_noise_and_other_clusters_are_left_alone() -> None:
    labels = np.array([-1, -1, 0, 0], np.int32)
    found = heed(
        np.array([-1, -1, -1, 2]),
        labels,
        np.arange(4),
        angles(0, 0, 0, 5),
        said(4, scenes=((0, 1, 2),), contents=[0, 1, 2, 3]),
        eps=EPS,
    )
    assert found.tolist() == [-1, -1, -1, 2]


def test_copies_in_two_partitions_both_stay() -> None:
    labels = np.array([0, 0, 1, 1], np.int32)
    words = said(4, contents=[0, 1, 0, 1], stays=(1,), apart=((0, 1),), meant=(1,))
    features = angles(0, 5, 0, 5)
    found = heed(np.array([-1, 0, -1, 2]), labels, np.arange(4), features, words, eps=EPS)
    assert found.tolist() == [-1, -1, -1, -1]


@st.composite
def opinions(draw: st.DrawFn, contents: np.ndarray) -> Said:
    """Anything that the fold of reviews can say of some contents."""
    names = np.unique(contents).tolist()
    some = st.lists(st.sampled_from(names), max_size=4, unique=True)
    stays = tuple(draw(some))
    apart = draw(st.lists(st.tuples(*[st.sampled_from(names)] * 2), max_size=4))
    apart = [(a, b) for a, b in apart if a != b]
    is_said = {frozenset(pair) for pair in apart}
    instead = [
        (a, b)
        for a in stays
        for b in draw(some)
        if (b not in stays or a == b) and frozenset((a, b)) not in is_said
    ]
    scene = [name for name in draw(some) if not any(name in pair for pair in apart)]
    rows = [n for n in np.flatnonzero(np.isin(contents, stays)).tolist() if draw(st.booleans())]
    return said(
        len(contents),
        contents=contents.tolist(),
        stays=stays,
        meant=tuple(rows),
        apart=tuple(apart),
        instead=tuple(instead),
        scenes=(tuple(scene),),
    )


@given(data=st.data(), is_cover=st.booleans())
def test_whatever_is_said_every_image_that_goes_has_a_living_twin(
    data: st.DataObject, is_cover: bool
) -> None:
    features = data.draw(feature_sets())
    num_items = len(features)
    eps = data.draw(eps_for(features))
    component = connect(features, np.arange(num_items), num_items, eps)
    labels = dbscan_labels(component, are_large(component, 2), [])
    ranks = np.array(data.draw(st.permutations(range(num_items))))
    before = (
        cover_keepers(features, labels, ranks, eps=eps)
        if is_cover
        else first_keepers(labels, ranks)
    )
    _, contents = np.unique(features, axis=0, return_inverse=True)
    words = data.draw(opinions(contents))

    after = heed(before, labels, ranks, features, words, eps=eps)

    goes = np.flatnonzero(after >= 0)
    keepers = after[goes]
    assert (after[keepers] == -1).all()
    assert (labels[keepers] == labels[goes]).all()
    assert (keepers != goes).all()
    assert (after[rows_that_stay(before, labels, ranks, words)] == -1).all()
    assert words.may_go(goes, keepers).all()
    near = within(all_distances(features), eps)[goes, keepers]
    is_scene = (words.scene_of[goes] >= 0) & (words.scene_of[goes] == words.scene_of[keepers])
    assert (near | is_scene | (keepers == before[goes])).all()
    is_untouched = ~np.isin(labels, labels[words.is_touched()])
    assert (after[is_untouched] == before[is_untouched]).all()
    assert (heed(after, labels, ranks, features, words, eps=eps) == after).all()
    for place in {(label, scene) for label, scene in zip(labels, words.scene_of, strict=True)}:
        if min(place) >= 0:
            kept = np.flatnonzero(
                (labels == place[0]) & (words.scene_of == place[1]) & (after == -1)
            )
            stay = rows_that_stay(before, labels, ranks, words)[kept]
            assert stay.all() or len(kept) == 1


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_items_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = angles(*rng.uniform(0, 40, 12))
    labels, ranks = np.zeros(12, np.int32), rng.permutation(12)
    before = cover_keepers(features, labels, ranks, eps=EPS)
    removed = int(np.flatnonzero(before >= 0)[0])
    pair = ((removed, int(before[removed])),)
    words: dict[str, Any] = {"stays": (removed,), "instead": pair, "scenes": ((0, 5, 9),)}
    after = heed(before, labels, ranks, features, said(12, **words), eps=EPS)

    old_of = rng.permutation(12)
    new_of = np.argsort(old_of)
    turned = np.where(before[old_of] >= 0, new_of[before[old_of]], -1)
    found = heed(
        turned,
        labels,
        ranks[old_of],
        features[old_of],
        said(12, contents=old_of.tolist(), **words),
        eps=EPS,
    )
    assert np.where(found >= 0, old_of[found], -1).tolist() == after[old_of].tolist()
