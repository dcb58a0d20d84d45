"""The form of `review.json`: what a person has chosen in the report of one manifest."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import storage
from tasks.errors import ArtifactError
from tasks.manifests import LoadedManifest

MAX_URL_LENGTH = 8_192


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ImageChoice(_Strict):
    """A choice about one removed image."""

    choice: Literal["not a duplicate", "keep this one"]
    url: str = Field(min_length=1, max_length=MAX_URL_LENGTH)


class ClusterChoice(_Strict):
    """A choice about all images of a cluster."""

    choice: Literal["keep all", "remove all"]
    cluster_id: int = Field(ge=0, lt=2**31)


class Review(_Strict):
    """All choices about one manifest."""

    format: Literal["image-dedup review 1"] = "image-dedup review 1"
    run_id: str
    manifest_digest: str
    choices: tuple[ImageChoice | ClusterChoice, ...] = ()


def review_url(manifest_url: str) -> str:
    """Where the review of a manifest lies."""
    return storage.join(manifest_url.rpartition("/")[0], "review.json")


def empty_review(manifest: LoadedManifest) -> Review:
    """The review of somebody who has chosen nothing yet."""
    return Review(run_id=manifest.summary.run_id, manifest_digest=manifest.digest)


def check_review(content: bytes, manifest: LoadedManifest) -> None:
    """Make sure that a file is a review of a manifest.

    Args:
        content: The whole file.
        manifest: What it must be about.

    Raises:
        ArtifactError: It is none, is about another manifest, or chooses twice for one image or
            one cluster.
    """
    try:
        review = Review.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ArtifactError(
            f"expected a review, found something else: {place}: {first['msg']}"
        ) from None
    expected = (manifest.summary.run_id, manifest.digest)
    if (review.run_id, review.manifest_digest) != expected:
        raise ArtifactError(
            f"expected a review of this manifest, found one of run {review.run_id!r}"
        )
    times = Counter(
        choice.url if isinstance(choice, ImageChoice) else choice.cluster_id
        for choice in review.choices
    )
    for target, count in times.most_common(1):
        if count > 1:
            raise ArtifactError(f"expected one choice for each, found {count} for {target!r}")
