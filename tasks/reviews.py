"""Reads `review.json`, which a person fills in the report, and says what it amounts to."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.profiles import describe
from tasks.errors import ReviewError
from tasks.manifests import LoadedManifest
from tasks.verdicts import GroupVerdict, ImageVerdict, RecordedReview

_MAX_PROBLEMS_NAMED = 3


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ImageChoice(_Record):
    """What a person says of one image that would go."""

    choice: Literal["not a duplicate", "keep this one"]
    url: str


class GroupChoice(_Record):
    """What a person says of a whole cluster."""

    choice: Literal["keep all", "remove all"]
    cluster_id: int = Field(ge=0)


class Review(_Record):
    """One person's opinion of one manifest."""

    format: Literal["image-dedup review 1"]
    run_id: str
    manifest_digest: str
    choices: tuple[Annotated[ImageChoice | GroupChoice, Field(discriminator="choice")], ...]


def parse_review(content: bytes, url: str) -> Review:
    """Read a review.

    Args:
        content: The file.
        url: Where it lies, for the message.

    Raises:
        ReviewError: It is damaged, or says what no review can say.
    """
    try:
        return Review.model_validate_json(content)
    except ValidationError as error:
        clauses = describe(error).split("; ")
        raise ReviewError(
            f"expected a review, found something else: {_few(clauses)}: {url}"
        ) from None


def verdicts_of(review: Review, manifest: LoadedManifest) -> RecordedReview:
    """Say what a review amounts to, by content.

    Args:
        review: What a person said.
        manifest: What it was said of.

    Raises:
        ReviewError: The review is of another manifest, names what the manifest does not have,
            says something twice, or contradicts itself; names the first of these.
    """
    run_id, digest = manifest.summary.run_id, manifest.digest
    if review.run_id != run_id:
        raise ReviewError(f"the review is of the run {review.run_id!r}, the manifest of {run_id}")
    if review.manifest_digest != digest:
        raise ReviewError(
            f"the review is of a manifest with the digest {review.manifest_digest[:12]!r}…, this "
            f"one has {digest[:12]}…: open the report of the run again"
        )
    if not review.choices:
        raise ReviewError("the review has no choices, so there is nothing to do")
    images = [choice for choice in review.choices if isinstance(choice, ImageChoice)]
    groups = [choice for choice in review.choices if isinstance(choice, GroupChoice)]
    row_of = {row["url"]: row for row in manifest.table.to_pylist()}
    contents_of = _contents_of_clusters(manifest)
    problems = [
        *_repeated(f"the image {choice.url!r}" for choice in images),
        *_repeated(f"the cluster {choice.cluster_id}" for choice in groups),
        *_strange_images(images, row_of),
        *(
            f"cluster {choice.cluster_id} is none of the manifest"
            for choice in groups
            if choice.cluster_id not in contents_of
        ),
    ]
    if not problems:
        said_of_images = [_image_verdict(choice, row_of) for choice in images]
        said_of_groups = [
            GroupVerdict(choice=choice.choice, sha256s=contents_of[choice.cluster_id])
            for choice in groups
        ]
        problems = [*_contradictions(said_of_images), *_contradictory_groups(groups, contents_of)]
    if problems:
        raise ReviewError(f"no review of {run_id} can say: {_few(problems)}")
    return RecordedReview(
        run_id=run_id,
        manifest_digest=digest,
        images=tuple(sorted(said_of_images, key=lambda said: (said.url, said.choice))),
        groups=tuple(sorted(said_of_groups, key=lambda said: (said.sha256s, said.choice))),
    )


def _contents_of_clusters(manifest: LoadedManifest) -> dict[int, tuple[str, ...]]:
    readable = manifest.table.filter(pc.not_equal(manifest.table["action"], "skip"))
    contents: defaultdict[int, set[str]] = defaultdict(set)
    columns = (readable[name].to_pylist() for name in ("cluster_id", "sha256"))
    for cluster_id, sha256 in zip(*columns, strict=True):
        contents[cluster_id].add(sha256)
    return {cluster_id: tuple(sorted(group)) for cluster_id, group in contents.items()}


def _image_verdict(choice: ImageChoice, row_of: dict[str, Any]) -> ImageVerdict:
    row = row_of[choice.url]
    return ImageVerdict(
        choice=choice.choice,
        sha256=row["sha256"],
        keeper_sha256=row_of[row["keeper_url"]]["sha256"],
        url=choice.url,
    )


def _repeated(names: Iterable[str]) -> Iterator[str]:
    for name, times in Counter(names).items():
        if times > 1:
            yield f"{times} choices for {name}"


def _strange_images(choices: Iterable[ImageChoice], row_of: dict[str, Any]) -> Iterator[str]:
    for choice in choices:
        row = row_of.get(choice.url)
        if row is None:
            yield f"{choice.choice!r} of an image that the manifest does not have: {choice.url!r}"
        elif row["action"] != "remove":
            yield (
                f"{choice.choice!r} of an image that is not removed "
                f"(its action is {row['action']}): {choice.url!r}"
            )


def _contradictions(verdicts: Iterable[ImageVerdict]) -> Iterator[str]:
    """Find what was said of the same two contents by way of several images, and does not agree."""
    said: dict[frozenset[str], ImageVerdict] = {}
    for verdict in verdicts:
        first = said.setdefault(frozenset((verdict.sha256, verdict.keeper_sha256)), verdict)
        is_turned = verdict.choice == "keep this one" and first.sha256 != verdict.sha256
        if first.choice != verdict.choice or is_turned:
            yield (
                f"{first.choice!r} of {first.url!r} and {verdict.choice!r} of {verdict.url!r}, "
                "which speak of the same two contents"
            )


def _contradictory_groups(
    choices: Iterable[GroupChoice], contents_of: dict[int, tuple[str, ...]]
) -> Iterator[str]:
    said: dict[str, GroupChoice] = {}
    for choice in choices:
        firsts = [said.setdefault(content, choice) for content in contents_of[choice.cluster_id]]
        other = next((first for first in firsts if first.choice != choice.choice), None)
        if other is not None:
            yield (
                f"{other.choice!r} of cluster {other.cluster_id} and {choice.choice!r} of "
                f"cluster {choice.cluster_id}, which share a content"
            )


def _few(clauses: list[str]) -> str:
    more = len(clauses) - _MAX_PROBLEMS_NAMED
    return "; ".join(clauses[:_MAX_PROBLEMS_NAMED]) + (f"; and {more} more" if more > 0 else "")
