"""A second opinion, from a night's manifest over a review to the next night, and acting on it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from config import ActingSettings, ApplyConfig, FeatureSettings, load_config
from flows.acting import apply_manifest, undo_apply
from flows.cli import app
from flows.dedup import dedup
from flows.reviewing import ReviewSummary, review_manifest
from tasks import storage
from tasks.approvals import record_decision
from tasks.errors import ApprovalError, ArtifactError, GuardError, ReviewError
from tasks.feature_store import feature_metadata, store_url
from tasks.manifests import read_manifest
from tasks.schemas import FEATURES
from tasks.stage01_list_images import image_id
from tasks.summary import Summary, summary_rows
from tests.flows.test_acting import tree

pytestmark = pytest.mark.usefixtures("prefect_server")

# Images of a group lie on a circle of their own, at these degrees: up to 18 are within eps. What
# begins with "copy" has the content of the image that it names.
GROUPS = {
    "a": {"a0.jpg": 0, "a1.jpg": 10, "a2.jpg": 16},
    "b": {"b0.jpg": 0, "b1.jpg": 12, "b2.jpg": -12},
    "c": {"c0.jpg": 0, "c1.jpg": 5, "copy of c1.jpg": 5},
    "d": {"d0.jpg": 0, "d1.jpg": 15, "d2.jpg": 29, "d3.jpg": 45, "d4.jpg": 60},
    "n": {"n.jpg": 0},
}
FEATURE = FeatureSettings(image_size=112, dtype="float32")
ACTING = ActingSettings(workers=2, lock_seconds=5)


@dataclass(frozen=True)
class Reviewable:
    """A night that was embedded without a model, and its run."""

    folder: Path
    summary: Summary

    @property
    def workspace_url(self) -> str:
        return storage.absolute_url(str(self.folder / "workspace"))

    def url(self, name: str) -> str:
        return storage.join(self.summary.source_url, name)

    def run(self, **settings: Any) -> Summary:
        return run_night(self.folder, **settings)

    def review(self, summary: Summary | ReviewSummary, *choices: Mapping[str, Any]) -> str:
        """Save a review, as the report does."""
        said = {
            "format": "image-dedup review 1",
            "run_id": summary.run_id,
            "manifest_digest": read_manifest(summary.manifest_url).digest,
            "choices": [
                {**choice, "url": self.url(choice["url"])} if "url" in choice else choice
                for choice in choices
            ],
        }
        path = self.folder / "review.json"
        path.write_text(json.dumps(said))
        return str(path)

    def rows(self, summary: Summary | ReviewSummary) -> dict[str, tuple[str, str | None, str]]:
        """Action, keeper and reason of every image."""
        return {
            self.name(row["url"]): (row["action"], self.name(row["keeper_url"]), row["reason"])
            for row in read_manifest(summary.manifest_url).table.to_pylist()
        }

    def name(self, url: str | None) -> Any:
        return None if url is None else url.rpartition("/")[2]

    def cluster(self, name: str) -> int:
        rows = read_manifest(self.summary.manifest_url).table.to_pylist()
        return next(int(row["cluster_id"]) for row in rows if self.name(row["url"]) == name)

    def images(self) -> dict[str, bytes]:
        return tree(self.summary.source_url)


def run_night(folder: Path, **settings: Any) -> Summary:
    said = {
        "source_url": str(folder / "source"),
        "workspace_url": str(folder / "workspace"),
        "features": {"image_size": 112, "dtype": "float32"},
        **settings,
    }
    return dedup(load_config(None, said))


def add_images(folder: Path, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Add files to the source, and to the store their features."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    feature_of = {}
    for name, images in groups.items():
        for image, degrees in images.items():
            (source / image).write_bytes(image.removeprefix("copy of ").encode() * 50)
            os.utime(source / image, (1_700_000_000, 1_700_000_000))
            feature = np.zeros(512, np.float32)
            place = 2 * (ord(name) - ord("a"))
            feature[place : place + 2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            feature_of[image] = feature
    rows = [
        {
            "image_id": image_id(file.url, file.size_bytes, file.etag),
            "url": file.url,
            "size_bytes": file.size_bytes,
            "etag": file.etag,
            "sha256": hashlib.sha256((source / file.relative_path).read_bytes()).hexdigest(),
            "width": 640,
            "height": 480,
            "sharpness": 1.0,
            "feature": feature_of[file.relative_path],
        }
        for file in storage.list_files(storage.absolute_url(str(source)))
        if file.relative_path in feature_of
    ]
    store = store_url(storage.absolute_url(str(folder / "workspace")), FEATURE)
    storage.publish_table(
        storage.join(store, f"{'-'.join(groups)}.parquet"),
        pa.Table.from_pylist(rows, FEATURES).replace_schema_metadata(feature_metadata(FEATURE)),
    )


@pytest.fixture
def night(tmp_path: Path) -> Reviewable:
    add_images(tmp_path, GROUPS)
    return Reviewable(tmp_path, run_night(tmp_path))


def choices_of(night: Reviewable) -> list[dict[str, Any]]:
    return [
        {"choice": "not a duplicate", "url": "a1.jpg"},
        {"choice": "keep this one", "url": "b1.jpg"},
        {"choice": "keep all", "cluster_id": night.cluster("c0.jpg")},
        {"choice": "remove all", "cluster_id": night.cluster("d0.jpg")},
    ]


BEFORE = {
    "a0.jpg": ("keep", None, "keeper"),
    "a1.jpg": ("remove", "a0.jpg", "within eps"),
    "a2.jpg": ("remove", "a0.jpg", "within eps"),
    "b0.jpg": ("keep", None, "keeper"),
    "b1.jpg": ("remove", "b0.jpg", "within eps"),
    "b2.jpg": ("remove", "b0.jpg", "within eps"),
    "c0.jpg": ("keep", None, "keeper"),
    "c1.jpg": ("remove", "c0.jpg", "within eps"),
    "copy of c1.jpg": ("remove", "c0.jpg", "within eps"),
    "d0.jpg": ("remove", "d1.jpg", "within eps"),
    "d1.jpg": ("keep", None, "keeper"),
    "d2.jpg": ("remove", "d1.jpg", "within eps"),
    "d3.jpg": ("keep", None, "keeper"),
    "d4.jpg": ("remove", "d3.jpg", "within eps"),
    "n.jpg": ("keep", None, "unique"),
}
AFTER = BEFORE | {
    "a1.jpg": ("keep", None, "reviewed: not a duplicate"),
    "b0.jpg": ("remove", "b1.jpg", "within eps"),
    "b1.jpg": ("keep", None, "reviewed: keep"),
    "b2.jpg": ("keep", None, "keeper"),
    "c0.jpg": ("keep", None, "reviewed: keep all"),
    "c1.jpg": ("keep", None, "reviewed: keep all"),
    "copy of c1.jpg": ("keep", None, "reviewed: keep all"),
    "d3.jpg": ("remove", "d1.jpg", "same scene, reviewed"),
    "d4.jpg": ("remove", "d1.jpg", "same scene, reviewed"),
}


def apply(summary: Summary | ReviewSummary, **settings: Any) -> Any:
    said = {"manifest_url": summary.manifest_url, "execute": True, "acting": ACTING} | settings
    return apply_manifest(ApplyConfig.model_validate(said))


def test_review_becomes_a_manifest_the_next_night_writes_it_too_and_apply_acts_on_it(
    night: Reviewable,
) -> None:
    assert night.rows(night.summary) == BEFORE
    before = tree(night.summary.manifest_url.rpartition("/")[0])
    images = night.images()

    reviewed = review_manifest(
        night.summary.manifest_url, night.review(night.summary, *choices_of(night))
    )

    assert night.rows(reviewed) == AFTER
    assert (reviewed.number, reviewed.is_new) == (1, True)
    assert (reviewed.num_changed_to_keep, reviewed.num_changed_to_remove) == (5, 2)
    assert reviewed.run_id != night.summary.run_id
    assert tree(night.summary.manifest_url.rpartition("/")[0]) == before
    written = tree(reviewed.manifest_url.rpartition("/")[0])
    assert {"manifest.parquet", "summary.json", "index.ann", "verdicts.json"} <= written.keys()
    assert storage.exists(reviewed.report_url)

    again = night.run()

    assert (again.run_id, again.manifest_url) == (reviewed.run_id, reviewed.manifest_url)
    now = tree(reviewed.manifest_url.rpartition("/")[0])
    told = {name: now[name] == content for name, content in written.items()}
    assert {name for name, is_same in told.items() if not is_same} <= {
        "summary.json",
        *(name for name in told if name.startswith("report")),
    }
    assert (again.num_stay_reviewed, again.num_go_reviewed, again.num_orphans) == (5, 2, 0)
    assert ("reviewed", "5 stay, 2 go beyond eps as one scene") in summary_rows(again)

    applied = apply(reviewed)

    gone = {name for name, row in AFTER.items() if row[0] == "remove"}
    assert night.images().keys() == images.keys() - gone
    assert (applied.num_done, applied.num_problems) == (6, 0)
    assert "reviews: 2 images to remove go beyond eps, as a person wants it (met)" in applied.guards
    undo_apply(str(applied.apply_id), night.workspace_url, ACTING)
    assert night.images() == images


def test_without_reviews_nothing_is_written_otherwise(night: Reviewable) -> None:
    written = tree(night.summary.manifest_url.rpartition("/")[0])
    assert not {"verdicts.json", "reasons.parquet", "keepers-reviewed.parquet"} & written.keys()
    assert "verdicts" not in read_manifest(night.summary.manifest_url).metadata


def test_same_review_twice_changes_nothing(night: Reviewable) -> None:
    url = night.review(night.summary, *choices_of(night))
    first = review_manifest(night.summary.manifest_url, url)
    before = tree(night.workspace_url)
    second = review_manifest(night.summary.manifest_url, url)
    assert second == first.model_copy(update={"is_new": False})
    assert tree(night.workspace_url) == before


def test_review_that_was_killed_before_its_manifest_is_completed(night: Reviewable) -> None:
    url = night.review(night.summary, *choices_of(night))
    first = review_manifest(night.summary.manifest_url, url)
    for name in ("manifest.parquet", "summary.json"):
        Path(f"{first.manifest_url.rpartition('/')[0]}/{name}".removeprefix("file://")).unlink()
    second = review_manifest(night.summary.manifest_url, url)
    assert second == first.model_copy(update={"is_new": False})


def test_review_of_a_reviewed_manifest_is_the_last_word(night: Reviewable) -> None:
    first = review_manifest(
        night.summary.manifest_url, night.review(night.summary, *choices_of(night))
    )
    second = review_manifest(
        first.manifest_url,
        night.review(
            first,
            {"choice": "not a duplicate", "url": "d4.jpg"},
            {"choice": "keep this one", "url": "b0.jpg"},
            {"choice": "remove all", "cluster_id": night.cluster("c0.jpg")},
        ),
    )
    assert (second.number, second.is_new) == (2, True)
    assert night.rows(second) == AFTER | {
        "b0.jpg": ("keep", None, "reviewed: keep"),
        "b1.jpg": ("remove", "b0.jpg", "within eps"),
        "b2.jpg": ("remove", "b0.jpg", "within eps"),
        "c0.jpg": ("keep", None, "keeper"),
        "c1.jpg": ("remove", "c0.jpg", "within eps"),
        "copy of c1.jpg": ("remove", "c0.jpg", "within eps"),
        "d3.jpg": ("remove", "d4.jpg", "within eps"),
        "d4.jpg": ("keep", None, "reviewed: not a duplicate"),
    }
    assert night.run().run_id == second.run_id


def test_later_night_with_more_images_heeds_what_was_said(night: Reviewable) -> None:
    review_manifest(night.summary.manifest_url, night.review(night.summary, *choices_of(night)))
    add_images(night.folder, {"d": {"d9.jpg": 50}, "a": {"copy of a1.jpg": 10}})
    rows = night.rows(night.run(library={"enabled": False}))
    assert {name: row for name, row in rows.items() if row[0] == "keep"} == {
        "a0.jpg": ("keep", None, "keeper"),
        "a1.jpg": ("keep", None, "reviewed: not a duplicate"),
        "b1.jpg": ("keep", None, "reviewed: keep"),
        "b2.jpg": ("keep", None, "keeper"),
        **{name: row for name, row in AFTER.items() if row[0] == "keep" and name[0] == "c"},
        "d0.jpg": ("keep", None, "keeper"),
        # Nobody has seen it.
        "d9.jpg": ("keep", None, "keeper"),
        "n.jpg": ("keep", None, "unique"),
    }
    assert rows["copy of a1.jpg"] == ("remove", "a1.jpg", "exact copy")
    assert rows["d1.jpg"] == ("remove", "d0.jpg", "within eps")
    assert rows["d2.jpg"] == ("remove", "d0.jpg", "same scene, reviewed")
    assert rows["d3.jpg"] == ("remove", "d9.jpg", "within eps")


def test_later_night_heeds_it_beside_what_was_kept(night: Reviewable) -> None:
    review_manifest(night.summary.manifest_url, night.review(night.summary, *choices_of(night)))
    add_images(night.folder, {"d": {"d9.jpg": 50}, "a": {"copy of a1.jpg": 10}})
    rows = night.rows(night.run())
    kept = {name for name, row in AFTER.items() if row[0] == "keep"}
    assert {name: row for name, row in rows.items() if row[0] == "keep"} == {
        **dict.fromkeys(kept, ("keep", None, "kept by an earlier night")),
        "d9.jpg": ("keep", None, "unique"),
    }
    gone = {name: row for name, row in AFTER.items() if row[0] == "remove"}
    assert {name: row for name, row in rows.items() if row[0] == "remove"} == {
        **gone,
        "a2.jpg": ("remove", "a1.jpg", "within eps"),  # of those that stay it is the nearest
        "copy of a1.jpg": ("remove", "a1.jpg", "exact copy"),
    }


def test_other_nights_are_called_what_they_always_were(night: Reviewable, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    add_images(tmp_path / "other", {"n": {"n1.jpg": 0, "n2.jpg": 5}})
    library = {"enabled": False}
    settings = {"source_url": str(tmp_path / "other" / "source"), "library": library}
    alone = run_night(tmp_path / "other", library=library)
    store = tree(store_url(storage.absolute_url(str(tmp_path / "other" / "workspace")), FEATURE))
    for name, content in store.items():
        storage.publish_bytes(storage.join(store_url(night.workspace_url, FEATURE), name), content)
    review_manifest(night.summary.manifest_url, night.review(night.summary, *choices_of(night)))
    beside = night.run(**settings)
    assert beside.run_id == alone.run_id
    assert storage.read_bytes(beside.manifest_url) == storage.read_bytes(alone.manifest_url)


def test_manifest_that_was_corrected_since_is_not_acted_on(night: Reviewable) -> None:
    images = night.images()
    manifest = read_manifest(night.summary.manifest_url)
    record_decision(manifest, is_approved=True, by="me", comment="")
    reviewed = review_manifest(
        night.summary.manifest_url, night.review(night.summary, *choices_of(night))
    )
    with pytest.raises(GuardError, match="people have said something else of these images"):
        apply(night.summary)
    with pytest.raises(ApprovalError, match="waits for a person"):
        apply(reviewed, approval="required")
    assert night.images() == images


def forge(summary: ReviewSummary, change: Any, **metadata: str) -> None:
    """Change rows of a manifest and give it a right digest again."""
    from tests.written_nights import publish_manifest

    manifest = read_manifest(summary.manifest_url)
    rows = [change(row) for row in manifest.table.to_pylist()]
    said = {k: v for k, v in manifest.metadata.items() if k != "digest"} | metadata
    said = {k: v for k, v in said.items() if v}
    publish_manifest(summary.manifest_url, manifest.summary.source_url, rows, said)


def test_nobody_goes_beyond_eps_by_a_word_that_no_person_gave(night: Reviewable) -> None:
    reviewed = review_manifest(
        night.summary.manifest_url, night.review(night.summary, *choices_of(night))
    )
    images = night.images()

    def also_a2(row: dict[str, Any]) -> dict[str, Any]:
        forged = {"distance": 0.9, "reason": "same scene, reviewed"}
        return row | forged if row["url"] == night.url("a2.jpg") else row

    forge(reviewed, also_a2)
    with pytest.raises(GuardError, match="1 images to remove go beyond eps as one scene, and nobo"):
        apply(reviewed, guards={"allow_orphans": True})

    heeding = json.loads(read_manifest(reviewed.manifest_url).metadata["verdicts"])
    forge(reviewed, lambda row: row, verdicts=json.dumps(heeding | {"digest": "0" * 64}))
    with pytest.raises(GuardError, match="people have said something else"):
        apply(reviewed)

    manifest = pq.read_table(reviewed.manifest_url.removeprefix("file://"))
    metadata = {k: v for k, v in manifest.schema.metadata.items() if k != b"verdicts"}
    from tasks.manifests import manifest_digest

    text = {k.decode(): v.decode() for k, v in metadata.items()}
    text["digest"] = manifest_digest(manifest, text)
    storage.publish_table(reviewed.manifest_url, manifest.replace_schema_metadata(text))
    with pytest.raises(ArtifactError, match="which no person gave"):
        apply(reviewed)
    assert night.images() == images


def test_review_that_is_refused_writes_nothing(night: Reviewable) -> None:
    before = tree(night.workspace_url)
    url = night.summary.manifest_url
    bad = night.review(night.summary, {"choice": "keep this one", "url": "a0.jpg"})
    with pytest.raises(ReviewError, match="is not removed"):
        review_manifest(url, bad)
    with pytest.raises(ReviewError, match="found no such file"):
        review_manifest(url, str(night.folder / "no.json"))
    assert tree(night.workspace_url) == before


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("images.parquet", "expected a Parquet file, found nothing"),
        ("keepers.parquet", "expected a Parquet file, found nothing"),
        ("features.npy", "expected the features of the run, found nothing"),
    ],
)
def test_run_that_has_lost_an_artifact_is_not_reviewed(
    night: Reviewable, name: str, complaint: str
) -> None:
    url = night.review(night.summary, *choices_of(night))
    (night.folder / "workspace" / "runs" / night.summary.run_id / name).unlink()
    with pytest.raises(ArtifactError, match=complaint):
        review_manifest(night.summary.manifest_url, url)
    assert not storage.exists(storage.join(night.workspace_url, "reviews"))


def test_first_keepers_are_corrected_and_their_orphans_are_still_named(tmp_path: Path) -> None:
    add_images(tmp_path, GROUPS)
    night = Reviewable(tmp_path, run_night(tmp_path, clusters={"keepers": "first"}))
    assert night.summary.num_orphans == 3
    reviewed = review_manifest(
        night.summary.manifest_url,
        night.review(night.summary, {"choice": "keep this one", "url": "d1.jpg"}),
    )
    rows = night.rows(reviewed)
    assert {name: row for name, row in rows.items() if name[0] == "d"} == {
        "d0.jpg": ("remove", "d1.jpg", "within eps"),
        "d1.jpg": ("keep", None, "reviewed: keep"),
        "d2.jpg": ("remove", "d1.jpg", "within eps"),
        "d3.jpg": ("keep", None, "keeper"),
        "d4.jpg": ("remove", "d3.jpg", "within eps"),
    }
    assert night.run(clusters={"keepers": "first"}).run_id == reviewed.run_id


def command(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["review", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_command_prints_what_changed(night: Reviewable) -> None:
    url = night.review(night.summary, *choices_of(night))
    workspace = ("--workspace", night.workspace_url)
    status, stdout, _ = command(night.summary.run_id, url, *workspace)
    lines = dict(line.split("  ", 1) for line in stdout.splitlines())
    assert status == 0
    assert lines["review"].strip() == "number 1, remembered"
    assert lines["stay now"].strip() == "5 images that were to go"
    assert lines["go now"].strip() == "2 images that were to stay"
    status, stdout, _ = command(night.summary.manifest_url, url)
    assert "number 1, was remembered already: nothing is new" in stdout
    status, stdout, _ = command(night.summary.manifest_url, url, "--json")
    assert (status, json.loads(stdout)["num_changed_to_keep"]) == (0, 5)
    Path(url).write_text("{}")
    status, _, stderr = command(night.summary.manifest_url, url)
    assert (status, stderr.startswith("error: expected a review, found something else")) == (
        1,
        True,
    )
    assert command(night.summary.run_id, url)[0] == 2
