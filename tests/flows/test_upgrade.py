"""Workspaces of earlier releases: what was decided can be carried out, undone and purged.

Each archive in tests/upgrades is a bucket with two nights, their images and their workspace, as a
release wrote them; `make_workspace.py` beside them says how.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

from config import ActingSettings, ApplyConfig, MaintenanceConfig, load_config
from flows.acting import apply_manifest, purge_quarantine, undo_apply
from flows.dedup import dedup
from flows.maintenance import maintenance
from flows.reviewing import review_manifest
from tasks import storage
from tasks.approvals import read_decision
from tasks.calibrations import calibration_url, read_calibration
from tasks.errors import ArtifactError, ChangedSettingsError, GuardError
from tasks.manifests import manifest_url_of, read_manifest
from tasks.schemas import SCHEMA_VERSION
from tasks.summary import Summary
from tasks.verdicts import read_reviews
from tests.one_bucket import as_client
from tests.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("prefect_server")

BUCKET = "s3://previous-release"
WORKSPACE = f"{BUCKET}/workspace"
ARCHIVES = sorted((Path(__file__).parents[1] / "upgrades").glob("schema-*.tar.gz"))

FEATURES = {"image_size": 32, "dtype": "float32"}
ACTING = ActingSettings(workers=4)


@dataclass(frozen=True)
class Release:
    """What a release left."""

    schema_version: int
    contents: dict[str, bytes]
    """Every object, by its path in the bucket."""
    monday: str
    """Run of the first night, whose manifest was carried out."""
    apply_id: str
    tuesday: str
    """Run of the second night; it was approved, and then reviewed."""
    reviewed: str
    """Run that heeds the review."""

    def images(self, night: str) -> dict[str, bytes]:
        """The images of a night that the release left in their place."""
        prefix = f"{night}/"
        return {path: c for path, c in self.contents.items() if path.startswith(prefix)}

    def quarantined(self) -> dict[str, bytes]:
        """The images that the release moved away, by the path that they had."""
        folder = f"workspace/quarantine/{self.monday}/{self.apply_id}/"
        return {
            f"monday/{path.removeprefix(folder)}": content
            for path, content in self.contents.items()
            if path.startswith(folder)
        }


def in_bucket(folder: str) -> dict[str, bytes]:
    return {
        f"{folder}/{file.relative_path}": storage.read_bytes(file.url)
        for file in storage.list_files(f"{BUCKET}/{folder}")
    }


def unpacked(archive: Path) -> Release:
    with tarfile.open(archive) as tar:
        contents = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    runs = {path.split("/")[2] for path in contents if path.startswith("workspace/runs/")}
    (apply_id,) = {path.split("/")[4] for path in contents if "/applies/" in path}
    (monday,) = (run for run in runs if run.startswith("monday-"))
    (tuesday,) = {path.split("/")[2] for path in contents if path.endswith("/approval.json")}
    (reviewed,) = runs - {monday, tuesday}
    version = int(archive.name.split("-")[1].split(".")[0])
    return Release(version, contents, monday, apply_id, tuesday, reviewed)


@pytest.fixture(params=ARCHIVES, ids=[path.name.partition(".")[0] for path in ARCHIVES])
def release(request: pytest.FixtureRequest, s3_server: S3Server) -> Iterator[Release]:
    release = unpacked(request.param)
    with as_client(s3_server.admin):
        fs, bucket = storage.filesystem(BUCKET)
        fs.mkdir(bucket)
        for path, content in release.contents.items():
            storage.publish_bytes(f"{BUCKET}/{path}", content)
        yield release
        fs.rm(bucket, recursive=True)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code whose features and library have another schema than any release before."""
    deciding = ("feature_store", "stage04_collect_features", "stage12_extend_library")
    for module in (*deciding, "compact_features", "segments"):
        monkeypatch.setattr(f"tasks.{module}.SCHEMA_VERSION", 99)


def run(night: str, *, rebuild: bool = False) -> Summary:
    places = {"source_url": f"{BUCKET}/{night}", "workspace_url": WORKSPACE}
    return dedup(load_config(None, {**places, "features": FEATURES, "rebuild": rebuild}))


def apply_config(run_id: str, **settings: object) -> ApplyConfig:
    said = {"manifest_url": manifest_url_of(WORKSPACE, run_id), "acting": ACTING}
    return ApplyConfig.model_validate({**said, **settings})


def test_this_release_goes_on_where_one_of_its_own_schema_was(release: Release) -> None:
    is_ours = release.schema_version == SCHEMA_VERSION
    summary = run("tuesday", rebuild=not is_ours)
    assert summary.num_embedded == (0 if is_ours else 8)
    assert summary.num_remove_for_earlier == (2 if is_ours else 0)


@pytest.mark.usefixtures("newer")
class TestUnderNewerCode:
    def test_decisions_are_shown(self, release: Release) -> None:
        monday, tuesday, reviewed = (
            read_manifest(manifest_url_of(WORKSPACE, run_id)).summary
            for run_id in (release.monday, release.tuesday, release.reviewed)
        )
        assert (monday.num_images, monday.num_keep, monday.num_remove) == (6, 3, 3)
        assert (tuesday.num_images, tuesday.num_remove_for_earlier) == (8, 2)
        assert reviewed.num_stay_reviewed == 1

    def test_an_apply_is_undone_to_the_last_byte(self, release: Release) -> None:
        undone = undo_apply(release.apply_id, WORKSPACE, ACTING)
        assert (undone.num_done, undone.num_problems) == (3, 0)
        assert in_bucket("monday") == release.images("monday") | release.quarantined()

    def test_a_quarantine_is_purged(self, release: Release) -> None:
        purged = purge_quarantine(
            WORKSPACE, timedelta(0), execute=True, allow_orphans=False, acting=ACTING
        )
        assert (purged.num_done, purged.num_problems) == (3, 0)
        assert in_bucket("workspace/quarantine") == {}
        assert in_bucket("monday") == release.images("monday")

    def test_a_manifest_is_carried_out(self, release: Release) -> None:
        applied = apply_manifest(apply_config(release.reviewed, execute=True))
        assert applied.num_problems == 0
        assert applied.num_done == 8 - len(in_bucket("tuesday"))
        assert applied.apply_id is not None
        undo_apply(applied.apply_id, WORKSPACE, ACTING)
        assert in_bucket("tuesday") == release.images("tuesday")

    def test_an_apply_goes_on_where_it_was(self, release: Release) -> None:
        again = apply_manifest(apply_config(release.monday, execute=True))
        assert (again.apply_id, again.num_problems) == (release.apply_id, 0)
        assert in_bucket("monday") == release.images("monday")

    def test_what_people_said_is_remembered(self, release: Release) -> None:
        manifest = read_manifest(manifest_url_of(WORKSPACE, release.tuesday))
        decision = read_decision(manifest)
        assert decision is not None
        assert decision.is_approved
        (answer,) = read_calibration(calibration_url(manifest.url)).answers
        assert answer.said == "same"
        (review,) = read_reviews(WORKSPACE)
        assert [said.choice for said in review.images] == ["not a duplicate"]
        with pytest.raises(GuardError, match="people have said something else"):
            apply_manifest(apply_config(release.tuesday, execute=True))

    def test_a_decision_whose_artifacts_are_older_is_not_reviewed(self, release: Release) -> None:
        manifest = read_manifest(manifest_url_of(WORKSPACE, release.reviewed))
        rows = manifest.table.filter(pc.equal(manifest.table["action"], "remove"))
        review = {
            "format": "image-dedup review 1",
            "run_id": release.reviewed,
            "manifest_digest": manifest.digest,
            "choices": [{"choice": "not a duplicate", "url": rows["url"][0].as_py()}],
        }
        storage.publish_bytes(f"{WORKSPACE}/review.json", json.dumps(review).encode())
        with pytest.raises(ArtifactError, match="this one does not read: run the night again"):
            review_manifest(manifest.url, f"{WORKSPACE}/review.json")
        assert len(read_reviews(WORKSPACE)) == 1

    def test_a_night_begins_anew_only_when_told(self, release: Release) -> None:
        with pytest.raises(ChangedSettingsError) as refusal:
            run("tuesday")
        assert str(refusal.value).startswith(
            "the library of this workspace has other features (schema_version 99, was "
            f"{release.schema_version}). None of its 7 images of 2 nights would be "
            "compared with, and every image would be embedded anew. --rebuild "
        )
        assert in_bucket("workspace").keys() == {
            path for path in release.contents if path.startswith("workspace/")
        }
        summary = run("tuesday", rebuild=True)
        assert (summary.num_embedded, summary.num_remove_for_earlier) == (8, 0)
        assert summary.num_stay_reviewed == 1

    def test_maintenance_leaves_what_it_cannot_read(self, release: Release) -> None:
        config = {"workspace_url": WORKSPACE, "prune_library_older_than": "0s"}
        maintenance(MaintenanceConfig(**config, purge_older_than="0s"))
        for folder in ("features", "library"):
            left = {p for p in release.contents if p.startswith(f"workspace/{folder}/")}
            assert in_bucket(f"workspace/{folder}").keys() == left
        assert in_bucket("workspace/quarantine") == {}
