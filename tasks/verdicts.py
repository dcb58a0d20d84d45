"""What people said of images, by content, so that it holds on later nights too.

Every review becomes one numbered file of the workspace, which is never changed. Of all of them
together `fold` makes what holds now: where two contradict each other, the later one.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.profiles import describe
from tasks import storage
from tasks.errors import ArtifactError
from tasks.references import Heeded
from tasks.stores import store_of

SAME_SCENE = "same scene, reviewed"
"""Reason of an image that goes beyond eps, because a person said that its group is one scene."""

STAYS = "reviewed: "
"""How the reason of an image begins that stays because a person said so."""

_FILE_NAME = re.compile(r"([0-9]{6})\.jsonl")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ImageVerdict(_Record):
    """What a person said of an image that was to go, and so of its content."""

    choice: Literal["not a duplicate", "keep this one"]
    sha256: Sha256
    keeper_sha256: Sha256
    """Content of the image that it was to go for."""
    url: str
    """The image itself: of exact copies, the one that was meant."""


class GroupVerdict(_Record):
    """What a person said of a whole group."""

    choice: Literal["keep all", "remove all"]
    sha256s: tuple[Sha256, ...]
    """The contents of its images."""


class RecordedReview(_Record):
    """One review as the workspace remembers it."""

    format: Literal["image-dedup verdicts 1"] = "image-dedup verdicts 1"
    run_id: str
    manifest_digest: Sha256
    images: tuple[ImageVerdict, ...]
    groups: tuple[GroupVerdict, ...]


class Stay(_Record):
    """That a content is never removed for another one."""

    because: Literal["not a duplicate", "keep", "keep all"]
    is_every: bool
    """All images with this content stay. Otherwise one may go for another of them."""
    urls: tuple[str, ...]
    """Those of them that a person meant, and that so stay themselves."""


class Verdicts(_Record):
    """What all reviews together amount to. Equal ones are written alike."""

    stays: dict[Sha256, Stay] = {}
    apart: tuple[tuple[Sha256, Sha256], ...] = ()
    """Contents of which neither is removed for the other."""
    instead: tuple[tuple[Sha256, Sha256], ...] = ()
    """Contents that stay, and those that go for them where they are within eps."""
    scenes: tuple[tuple[Sha256, ...], ...] = ()
    """Contents that show one scene, so that one of each group is enough; no content is in two."""

    def __bool__(self) -> bool:
        return bool(self.stays or self.apart or self.instead or self.scenes)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits of the SHA-256 of all that is said."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def among(self, images: Iterable[tuple[str, str]]) -> "Verdicts":
        """Leave out what says nothing about some images.

        Args:
            images: URL and content of each; may be read once only.
        """
        if not self:
            return self
        known = {*self.stays, *(content for group in self.scenes for content in group)}
        known |= {content for pair in (*self.apart, *self.instead) for content in pair}
        urls_of: dict[str, set[str]] = {}
        for url, content in images:
            if content in known:
                urls_of.setdefault(content, set()).add(url)
        scenes = (tuple(c for c in group if c in urls_of) for group in self.scenes)
        return Verdicts(
            stays={
                content: stay.model_copy(
                    update={"urls": tuple(url for url in stay.urls if url in urls_of[content])}
                )
                for content, stay in self.stays.items()
                if content in urls_of
            },
            apart=tuple(pair for pair in self.apart if set(pair) <= urls_of.keys()),
            instead=tuple(pair for pair in self.instead if set(pair) <= urls_of.keys()),
            scenes=tuple(group for group in scenes if len(group) > 1),
        )


def reviews_url(workspace_url: str) -> str:
    """Where the reviews of a workspace are kept."""
    return storage.join(workspace_url, "reviews")


def read_reviews(workspace_url: str) -> list[RecordedReview]:
    """Read all reviews of a workspace, in the order in which they were given.

    Raises:
        ArtifactError: One is missing or damaged. What a person said must not be forgotten in
            silence.
    """
    urls = storage.list_names(reviews_url(workspace_url), ".jsonl")
    for number, url in enumerate(urls, start=1):
        if url.rpartition("/")[2] != _file_name(number):
            raise ArtifactError(f"expected review {_file_name(number)}, found another: {url}")
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda url: _parse(storage.read_bytes(url), url), urls))


def read_verdicts(workspace_url: str) -> Verdicts:
    """What all reviews of a workspace together amount to."""
    return fold(read_reviews(workspace_url))


def read_heeded(heeded: Heeded | None) -> Verdicts:
    """Read what a run heeds; no verdicts where that is nothing."""
    if heeded is None:
        return Verdicts()
    return Verdicts.model_validate_json(storage.read_bytes(heeded.url))


def record(review: RecordedReview, workspace_url: str) -> tuple[int, bool]:
    """Remember a review, unless it is remembered already.

    Returns:
        Its number, from 1, and whether it is new.

    Raises:
        ArtifactError: A review that was given before is damaged.
    """
    while True:
        earlier = read_reviews(workspace_url)
        if review in earlier:
            return earlier.index(review) + 1, False
        number = len(earlier) + 1
        url = storage.join(reviews_url(workspace_url), _file_name(number))
        # Nothing when somebody else was faster: then theirs is read, and ours is the next one.
        if store_of(url).create(url, _to_lines(review)) is not None:
            return number, True


def fold(reviews: Iterable[RecordedReview]) -> Verdicts:
    """Find out what holds after some reviews, given one after the other.

    Of each content and of each pair of contents, the last review that speaks of it decides. In one
    review, what was said of an image wins over what was said of its group.
    """
    said = _Said()
    for number, review in enumerate(reviews):
        said.hear_groups(review.groups, number)
        said.hear_images(review.images)
    return said.verdicts()


class _Said:
    """What holds after the reviews so far."""

    def __init__(self) -> None:
        self._stays: dict[str, Stay] = {}
        self._scene_of: dict[str, tuple[int, str]] = {}
        self._goes: dict[tuple[str, str], str | None] = {}
        """Which of two contents goes for the other; None where neither does."""
        self._kept: set[str] = set()
        """What the last review keeps by its groups."""

    def hear_groups(self, verdicts: Iterable[GroupVerdict], number: int) -> None:
        """Take in what a review says of groups."""
        groups = {"keep all": [set[str]()], "remove all": []}
        for verdict in verdicts:
            groups[verdict.choice].append(set(verdict.sha256s))
        self._kept = set().union(*groups["keep all"])
        for content in self._kept:
            self._stays[content] = Stay(because="keep all", is_every=True, urls=())
            self._scene_of.pop(content, None)
        for scene in joined(groups["remove all"]):
            for content in scene:
                self._stays.pop(content, None)
                self._scene_of[content] = (number, min(scene))

    def hear_images(self, verdicts: Iterable[ImageVerdict]) -> None:
        """Take in what the same review says of images."""
        said_of: dict[str, list[ImageVerdict]] = {}
        for verdict in verdicts:
            said_of.setdefault(verdict.sha256, []).append(verdict)
            is_chosen = verdict.choice == "keep this one"
            pair = _pair(verdict.sha256, verdict.keeper_sha256)
            self._goes[pair] = verdict.keeper_sha256 if is_chosen else None
            if not is_chosen:
                self._scene_of.pop(verdict.sha256, None)
            elif verdict.keeper_sha256 not in self._kept:
                self._stays.pop(verdict.keeper_sha256, None)
        for content in said_of.keys() - self._kept:
            self._stays[content] = _stay(said_of[content])

    def verdicts(self) -> Verdicts:
        """All of it, each thing once and in order."""
        scenes: dict[tuple[int, str], list[str]] = {}
        for content, name in self._scene_of.items():
            scenes.setdefault(name, []).append(content)
        turned = (_turned(pair, goes) for pair, goes in self._goes.items() if goes is not None)
        apart = (pair for pair, goes in self._goes.items() if goes is None)
        groups = (tuple(sorted(scene)) for scene in scenes.values() if len(scene) > 1)
        return Verdicts(
            stays=dict(sorted(self._stays.items())),
            apart=tuple(sorted(filter(self._is_apart, apart))),
            instead=tuple(sorted(filter(self._is_instead, turned))),
            scenes=tuple(sorted(groups)),
        )

    def _is_apart(self, pair: tuple[str, str]) -> bool:
        # Of one scene again: a later review said so, for this one took the image out of it.
        first, second = (self._scene_of.get(content) for content in pair)
        return pair[0] != pair[1] and (first is None or first != second)

    def _is_instead(self, pair: tuple[str, str]) -> bool:
        chosen, old = pair
        return chosen in self._stays and (old not in self._stays or chosen == old)


def joined(groups: Iterable[set[str]]) -> list[set[str]]:
    """Join the sets that have anything in common, also by way of others."""
    set_of: dict[str, set[str]] = {}
    for group in groups:
        whole = set(group).union(*(set_of[content] for content in group if content in set_of))
        set_of |= dict.fromkeys(whole, whole)
    return list({id(group): group for group in set_of.values()}.values())


def _stay(verdicts: list[ImageVerdict]) -> Stay:
    """What was said in one review of a content by way of one or more of its images."""
    is_apart = any(verdict.choice == "not a duplicate" for verdict in verdicts)
    return Stay(
        because="not a duplicate" if is_apart else "keep",
        # Who says of an exact copy that it is no duplicate wants to have both.
        is_every=any(
            verdict.choice == "not a duplicate" and verdict.sha256 == verdict.keeper_sha256
            for verdict in verdicts
        ),
        urls=tuple(sorted({verdict.url for verdict in verdicts})),
    )


def _pair(content: str, other: str) -> tuple[str, str]:
    return min(content, other), max(content, other)


def _turned(pair: tuple[str, str], goes: str) -> tuple[str, str]:
    """The content that stays, and the one that goes."""
    return (pair[0] if pair[1] == goes else pair[1]), goes


def _file_name(number: int) -> str:
    return f"{number:06d}.jsonl"


def _to_lines(review: RecordedReview) -> bytes:
    body = review.model_dump_json().encode()
    return body + b"\n" + json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


def _parse(content: bytes, url: str) -> RecordedReview:
    body, _, last = content.removesuffix(b"\n").partition(b"\n")
    try:
        if json.loads(last) != {"sha256": hashlib.sha256(body).hexdigest()}:
            raise ArtifactError(f"expected a review, found a damaged file: {url}")
        return RecordedReview.model_validate_json(body)
    except (ValidationError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            reason = describe(error)
        raise ArtifactError(f"expected a review, found something else: {url} ({reason})") from None
