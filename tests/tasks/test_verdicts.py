"""What reviews amount to: the last word on a content counts, and none is forgotten in silence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import storage
from tasks.errors import ArtifactError
from tasks.verdicts import (
    GroupVerdict,
    ImageVerdict,
    RecordedReview,
    Stay,
    Verdicts,
    _to_lines,
    fold,
    joined,
    read_reviews,
    record,
    reviews_url,
)

A, B, C, D = (letter * 64 for letter in "abcd")


def not_a_duplicate(sha256: str, keeper: str, url: str = "/u") -> ImageVerdict:
    return ImageVerdict(choice="not a duplicate", sha256=sha256, keeper_sha256=keeper, url=url)


def keep_this_one(sha256: str, keeper: str, url: str = "/u") -> ImageVerdict:
    return ImageVerdict(choice="keep this one", sha256=sha256, keeper_sha256=keeper, url=url)


def keep_all(*sha256s: str) -> GroupVerdict:
    return GroupVerdict(choice="keep all", sha256s=sha256s)


def remove_all(*sha256s: str) -> GroupVerdict:
    return GroupVerdict(choice="remove all", sha256s=sha256s)


def review(*verdicts: ImageVerdict | GroupVerdict) -> RecordedReview:
    return RecordedReview(
        run_id="night-0",
        manifest_digest="0" * 64,
        images=tuple(verdict for verdict in verdicts if isinstance(verdict, ImageVerdict)),
        groups=tuple(verdict for verdict in verdicts if isinstance(verdict, GroupVerdict)),
    )


APART = Stay(because="not a duplicate", is_every=False, urls=("/u",))
CHOSEN = Stay(because="keep", is_every=False, urls=("/u",))
EVERY = Stay(because="keep all", is_every=True, urls=())


def test_nothing_said_amounts_to_nothing() -> None:
    assert fold([]) == Verdicts()
    assert not fold([])


def test_each_choice_alone() -> None:
    assert fold([review(not_a_duplicate(B, A))]) == Verdicts(stays={B: APART}, apart=((A, B),))
    assert fold([review(keep_this_one(B, A))]) == Verdicts(stays={B: CHOSEN}, instead=((B, A),))
    assert fold([review(keep_all(B, A))]) == Verdicts(stays={A: EVERY, B: EVERY})
    assert fold([review(remove_all(B, A))]) == Verdicts(scenes=((A, B),))


def test_exact_copy_that_is_no_duplicate_keeps_every_copy() -> None:
    stay = Stay(because="not a duplicate", is_every=True, urls=("/u",))
    assert fold([review(not_a_duplicate(A, A))]) == Verdicts(stays={A: stay})


def test_exact_copy_that_is_chosen_stays_instead_of_the_others() -> None:
    assert fold([review(keep_this_one(A, A))]) == Verdicts(stays={A: CHOSEN}, instead=((A, A),))


def test_in_one_review_an_image_wins_over_its_group() -> None:
    assert fold([review(not_a_duplicate(B, A), remove_all(A, B, C))]) == Verdicts(
        stays={B: APART}, apart=((A, B),), scenes=((A, C),)
    )
    assert fold([review(keep_this_one(B, A), remove_all(A, B, C))]) == Verdicts(
        stays={B: CHOSEN}, instead=((B, A),), scenes=((A, B, C),)
    )
    # Whoever keeps all keeps the old keeper too.
    assert fold([review(keep_this_one(B, A), keep_all(A, B))]) == Verdicts(
        stays={A: EVERY, B: EVERY}
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (not_a_duplicate(B, A), remove_all(A, B), Verdicts(scenes=((A, B),))),
        (not_a_duplicate(B, A), remove_all(B, C), Verdicts(apart=((A, B),), scenes=((B, C),))),
        (remove_all(A, B), keep_all(A, B), Verdicts(stays={A: EVERY, B: EVERY})),
        (keep_all(A, B), remove_all(A, B), Verdicts(scenes=((A, B),))),
        (
            remove_all(A, B, C),
            not_a_duplicate(B, A),
            Verdicts(stays={B: APART}, apart=((A, B),), scenes=((A, C),)),
        ),
        (
            keep_this_one(B, A),
            keep_this_one(A, B),
            Verdicts(stays={A: CHOSEN}, instead=((A, B),)),
        ),
        (
            keep_this_one(B, A),
            keep_this_one(C, B),
            Verdicts(stays={C: CHOSEN}, instead=((C, B),)),
        ),
        (
            keep_this_one(B, A),
            not_a_duplicate(B, A),
            Verdicts(stays={B: APART}, apart=((A, B),)),
        ),
        (
            keep_this_one(B, A),
            not_a_duplicate(A, C),
            Verdicts(stays={A: APART, B: CHOSEN}, apart=((A, C),)),
        ),
        (remove_all(A, B, C), remove_all(C, D), Verdicts(scenes=((A, B), (C, D)))),
    ],
)
def test_later_review_wins(
    first: ImageVerdict | GroupVerdict, second: ImageVerdict | GroupVerdict, expected: Verdicts
) -> None:
    assert fold([review(first), review(second)]) == expected


def test_groups_of_one_review_that_share_a_content_are_one_scene() -> None:
    assert fold([review(remove_all(A, B), remove_all(B, C))]) == Verdicts(scenes=((A, B, C),))


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), max_size=6))
def test_joined_sets_have_nothing_in_common_and_all_of_everything(groups: list[set[str]]) -> None:
    found = joined(groups)
    assert sum(map(len, found)) == len(set().union(*groups))
    assert all(any(group <= whole for whole in found) for group in groups)


VERDICTS = [
    *(kind(x, y, x) for kind in (not_a_duplicate, keep_this_one) for x in (A, B) for y in (C, D)),
    keep_all(A, C),
    remove_all(B, D),
]


@given(verdicts=st.lists(st.sampled_from(VERDICTS), unique_by=str), data=st.data())
def test_order_in_a_review_does_not_matter(
    verdicts: list[ImageVerdict | GroupVerdict], data: st.DataObject
) -> None:
    pairs = [
        (each.sha256, each.keeper_sha256) for each in verdicts if isinstance(each, ImageVerdict)
    ]
    if len(set(pairs)) < len(pairs):
        return  # a contradiction, which is refused before
    other = data.draw(st.permutations(verdicts))
    assert fold([review(*verdicts)]).digest == fold([review(*other)]).digest


def test_among_leaves_out_what_says_nothing_of_some_images() -> None:
    said = fold(
        [review(not_a_duplicate(B, A), keep_this_one(C, A, "/c")), review(remove_all(A, D))]
    )
    assert said.among([("/u", B), ("/x", D)]) == Verdicts(stays={B: APART})
    assert said.among([("/other", C)]).stays[C].urls == ()
    assert said.among([("/a", A), ("/d", D)]) == Verdicts(scenes=((A, D),))
    assert not said.among([("/e", "e" * 64)])


def test_reviews_are_remembered_in_order_and_once(place: str) -> None:
    place = storage.absolute_url(place)
    first, second = review(not_a_duplicate(B, A)), review(keep_all(A))
    assert read_reviews(place) == []
    assert record(first, place) == (1, True)
    assert record(second, place) == (2, True)
    assert record(first, place) == (1, False)
    assert read_reviews(place) == [first, second]


def files_of(folder: Path) -> list[Path]:
    url = storage.absolute_url(str(folder))
    record(review(not_a_duplicate(B, A)), url)
    record(review(keep_all(C)), url)
    return [Path(name.removeprefix("file://")) for name in storage.list_names(reviews_url(url))]


def test_review_that_is_gone_is_noticed(tmp_path: Path) -> None:
    files_of(tmp_path)[0].unlink()
    with pytest.raises(ArtifactError, match=r"expected review 000001\.jsonl, found another: "):
        read_reviews(storage.absolute_url(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"{}", b"{}\n{}", b"\xff\n[", b"[" * 100_000])
def test_what_is_no_review_is_refused(tmp_path: Path, content: bytes) -> None:
    files_of(tmp_path)[1].write_bytes(content)
    with pytest.raises(ArtifactError, match=r"expected a review, found .*000002\.jsonl"):
        read_reviews(storage.absolute_url(str(tmp_path)))


def test_review_of_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    newer = review(keep_all(C)).model_copy(update={"format": "image-dedup verdicts 2"})
    files_of(tmp_path)[1].write_bytes(_to_lines(newer))
    with pytest.raises(ArtifactError, match="format: Input should be 'image-dedup verdicts 1'"):
        read_reviews(storage.absolute_url(str(tmp_path)))


def test_each_changed_byte_of_a_review_is_noticed(tmp_path: Path) -> None:
    file = files_of(tmp_path)[0]
    content = file.read_bytes()
    for position in range(0, len(content) - 1, 7):
        changed = bytearray(content)
        changed[position] ^= 1
        file.write_bytes(bytes(changed))
        with pytest.raises(ArtifactError):
            read_reviews(storage.absolute_url(str(tmp_path)))
