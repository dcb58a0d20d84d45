"""`review.json`: believed only where it is plausible, and refused with one clear error."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ReviewError
from tasks.manifests import LoadedManifest, read_manifest
from tasks.reviews import parse_review, verdicts_of
from tasks.verdicts import GroupVerdict, ImageVerdict, RecordedReview
from tests.written_nights import WrittenNight, write_night

NIGHT = "night-0123456789abcdef"


@pytest.fixture
def night(tmp_path: Path) -> WrittenNight:
    """Two groups; `copy` has the content of `k`, `l1` that of `k1`."""
    written = write_night(
        str(tmp_path), {"k": ["k1", "k2", "copy"], "l": ["l1", "l2"]}, noise=["n", "broken"]
    )
    digest_of = {row["url"]: row["sha256"] for row in written.rows}
    same = {written.url("copy"): written.url("k"), written.url("l1"): written.url("k1")}
    return written.rewrite(
        [
            row
            | {"sha256": digest_of[same.get(row["url"], row["url"])]}
            | ({"action": "skip"} if row["url"].endswith("broken") else {})
            for row in written.rows
        ]
    )


@pytest.fixture
def manifest(night: WrittenNight) -> LoadedManifest:
    return read_manifest(night.manifest_url)


def json_of(manifest: LoadedManifest, *choices: dict[str, Any], **changes: Any) -> bytes:
    said = {
        "format": "image-dedup review 1",
        "run_id": NIGHT,
        "manifest_digest": manifest.digest,
        "choices": list(choices),
    }
    return json.dumps(said | changes).encode()


def verdicts(manifest: LoadedManifest, *choices: dict[str, Any], **changes: Any) -> RecordedReview:
    return verdicts_of(
        parse_review(json_of(manifest, *choices, **changes), "review.json"), manifest
    )


def image(choice: str, url: str) -> dict[str, Any]:
    return {"choice": choice, "url": url}


def group(choice: str, cluster_id: object) -> dict[str, Any]:
    return {"choice": choice, "cluster_id": cluster_id}


def test_choices_become_verdicts_by_content(night: WrittenNight, manifest: LoadedManifest) -> None:
    digest_of = {row["url"]: row["sha256"] for row in night.rows}
    k, k1, k2, other, l2 = (digest_of[night.url(name)] for name in ("k", "k1", "k2", "l", "l2"))
    found = verdicts(
        manifest,
        group("remove all", 1),
        group("remove all", 0),
        image("keep this one", night.url("l2")),
        image("not a duplicate", night.url("copy")),
    )
    assert found == RecordedReview(
        run_id=NIGHT,
        manifest_digest=manifest.digest,
        images=(
            ImageVerdict(
                choice="not a duplicate", sha256=k, keeper_sha256=k, url=night.url("copy")
            ),
            ImageVerdict(
                choice="keep this one", sha256=l2, keeper_sha256=other, url=night.url("l2")
            ),
        ),
        groups=tuple(
            sorted(
                (
                    GroupVerdict(choice="remove all", sha256s=tuple(sorted((k, k1, k2)))),
                    GroupVerdict(choice="remove all", sha256s=tuple(sorted((other, k1, l2)))),
                ),
                key=lambda said: said.sha256s,
            )
        ),
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "image-dedup review 2"}, "format: Input should be 'image-dedup review 1'"),
        ({"comment": ""}, "comment: Extra inputs are not permitted"),
        ({"run_id": None}, "run_id: Input should be a valid string"),
        ({"run_id": "night-0"}, "the review is of the run 'night-0', the manifest of night-0123"),
        (
            {"manifest_digest": "0" * 64},
            "the review is of a manifest with the digest '000000000000'",
        ),
        ({"choices": []}, "the review has no choices"),
        ({"choices": {}}, "choices: Input should be a valid"),
        ({"choices": [{"url": "x"}]}, "choices.0: Unable to extract tag using discriminator"),
        ({"choices": [image("delete", "x")]}, "choices.0: Input tag 'delete' found using 'choice'"),
        ({"choices": [image("keep all", "x")]}, "cluster_id: Field required"),
        ({"choices": [image("keep this one", "x") | {"why": 1}]}, "why: Extra inputs"),
        ({"choices": [group("keep all", "0")]}, "Input should be a valid integer"),
        ({"choices": [group("keep all", True)]}, "Input should be a valid integer"),
        ({"choices": [group("keep all", -1)]}, "greater than or equal to 0"),
        ({"choices": [group("keep all", 2)]}, "cluster 2 is none of the manifest"),
        ({"choices": [group("keep all", 2**70)]}, "is none of the manifest"),
        ({"choices": [group("keep all", 0)] * 2}, "2 choices for the cluster 0"),
        ({"choices": [image("not a duplicate", "/x")]}, "that the manifest does not have: '/x'"),
    ],
)
def test_strange_review_is_refused(
    manifest: LoadedManifest, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ReviewError) as refused:
        verdicts(manifest, **changes)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"\\ud800"', b"[" * 10**6])
def test_what_is_no_review_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(ReviewError, match=r"expected a review, found something else: .*: here"):
        parse_review(content, "here")


@pytest.mark.parametrize(("name", "action"), [("k", "keep"), ("n", "keep"), ("broken", "skip")])
def test_choice_for_an_image_that_is_not_removed(
    night: WrittenNight, manifest: LoadedManifest, name: str, action: str
) -> None:
    with pytest.raises(ReviewError, match=f"is not removed \\(its action is {action}\\)"):
        verdicts(manifest, image("keep this one", night.url(name)))


def test_two_choices_for_one_image(night: WrittenNight, manifest: LoadedManifest) -> None:
    choices = [image(choice, night.url("k1")) for choice in ("not a duplicate", "keep this one")]
    with pytest.raises(ReviewError, match="2 choices for the image"):
        verdicts(manifest, *choices)


def test_two_groups_that_share_a_content_are_not_both_kept_and_removed(
    manifest: LoadedManifest,
) -> None:
    with pytest.raises(ReviewError, match="'keep all' of cluster 0 and 'remove all' of cluster 1"):
        verdicts(manifest, group("keep all", 0), group("remove all", 1))


def test_two_copies_of_a_content_cannot_be_told_apart(night: WrittenNight) -> None:
    digest_of = {row["url"]: row["sha256"] for row in night.rows}
    twins = night.rewrite(
        [
            row | {"sha256": digest_of[night.url("k1")]} if row["url"] == night.url("k2") else row
            for row in night.rows
        ]
    )
    manifest = read_manifest(twins.manifest_url)
    both = [image("not a duplicate", night.url("k1")), image("keep this one", night.url("k2"))]
    with pytest.raises(ReviewError, match="which speak of the same two contents"):
        verdicts(manifest, *both)
    assert len(verdicts(manifest, both[0], image("not a duplicate", night.url("k2"))).images) == 2


def test_of_very_many_problems_three_are_named(manifest: LoadedManifest) -> None:
    choices = [image("keep this one", f"/{number}") for number in range(1_000)]
    with pytest.raises(ReviewError, match=r"; and 997 more$") as refused:
        verdicts(manifest, *choices)
    assert len(str(refused.value)) < 400
    choices = [{"choice": "no", "url": ""}] * 1_000
    with pytest.raises(ReviewError, match="; and 997 more: "):
        verdicts(manifest, *choices)
