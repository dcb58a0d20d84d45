"""A person's second opinion: from a manifest and a review to a manifest that heeds it.

Plain functions over what the run has left on storage: no image is read, nothing is embedded or
searched again, and no Prefect server is needed.
"""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from config import ConfigError, DedupConfig, load_config
from tasks import storage
from tasks.cells import open_features
from tasks.errors import ArtifactError, ReviewError
from tasks.library import library_url, night_of_run, segment_names
from tasks.manifests import DIGEST, VERDICTS, LoadedManifest, own_rows, read_manifest, workspace_of
from tasks.partitions import eps_of
from tasks.references import Collection, Heeded, Keepers, Manifest
from tasks.reviews import parse_review, verdicts_of
from tasks.schemas import IMAGES, KEEPERS, MATCHES
from tasks.stage04_collect_features import publish_verdicts, reviewed_id, verdicts_among
from tasks.stage08c_heed_reviews import publish_heeded
from tasks.stage09_write_manifest import (
    manifest_table,
    publish_manifest,
    read_reasons,
    with_library,
)
from tasks.stage10_write_report import make_report
from tasks.stage12_extend_library import publish_segment
from tasks.verdicts import Verdicts, read_verdicts, record

_DECIDING = ("images.parquet", "features.npy", "keepers.parquet")
_BESIDE = ("sweep.json", "index.ann", "items.parquet")
_OF_LIBRARY = ("matches.parquet", "new-images.parquet", "new-features.npy")


class ReviewSummary(BaseModel):
    """What a review came to; `dedup review --json` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """The review is the so-manieth of its workspace."""
    is_new: bool
    """False when the workspace remembers this very review already."""
    num_changed_to_keep: int
    """Images that stay now and would have gone by the manifest that was reviewed."""
    num_changed_to_remove: int
    run_id: str
    manifest_url: str
    manifest_digest: str
    report_url: str


def review_manifest(
    manifest_url: str, review_url: str, workspace_url: str | None = None
) -> ReviewSummary:
    """Remember a review, and write the manifest that heeds it and all others.

    The new manifest lies in a run folder of its own, which is the very one that the next
    `dedup run` over the same images comes to. A call that was killed is completed by the same call.

    Args:
        manifest_url: What was reviewed.
        review_url: Where `review.json` lies.
        workspace_url: Workspace of the run; by default the one that the manifest lies in.

    Raises:
        ReviewError: The review is not one of this manifest; nothing was written.
        ArtifactError: What the run left is missing or damaged; nothing was written.
    """
    manifest = read_manifest(manifest_url)
    review_url = storage.absolute_url(review_url)
    try:
        content = storage.read_bytes(review_url)
    except (FileNotFoundError, IsADirectoryError):
        raise ReviewError(f"expected a review, found no such file: {review_url}") from None
    said = verdicts_of(parse_review(content, review_url), manifest)
    workspace_url = workspace_for(manifest, workspace_url)
    images = images_of(manifest)
    config = config_of(manifest, workspace_url)
    number, is_new = record(said, workspace_url)
    verdicts = verdicts_among(images, read_verdicts(workspace_url))
    heeding = heed_verdicts(manifest, images, verdicts, config)
    return ReviewSummary(
        number=number,
        is_new=is_new,
        num_changed_to_keep=num_changed(manifest, heeding, "remove", "keep"),
        num_changed_to_remove=num_changed(manifest, heeding, "keep", "remove"),
        run_id=heeding.summary.run_id,
        manifest_url=heeding.url,
        manifest_digest=heeding.digest,
        report_url=heeding.summary.report_url,
    )


def heed_verdicts(
    manifest: LoadedManifest, images: pa.Table, verdicts: Verdicts, config: DedupConfig
) -> LoadedManifest:
    """Publish the run that decides as a manifest does but for what people said.

    Args:
        manifest: Any manifest of the run.
        images: Table of `schemas.IMAGES`.
        verdicts: What people said of them.
        config: How the run decided.
    """
    summary = manifest.summary
    undisputed_id = summary.run_id if manifest.heeded is None else manifest.heeded.of_run
    run_id = reviewed_id(undisputed_id, verdicts)
    if run_id == summary.run_id:
        return manifest
    from_url = manifest.url.rpartition("/")[0]
    run_url = storage.join(storage.absolute_url(config.workspace_url), "runs", run_id)
    url = storage.join(run_url, "manifest.parquet")
    if is_written(run_url):
        return read_manifest(url)
    copy_artifacts(from_url, run_url)
    collection = compared_images(
        run_id, run_url, images.num_rows, publish_verdicts(verdicts, run_url, undisputed_id)
    )
    clusters = clusters_of(manifest, storage.read_table(collection.images_url, IMAGES))
    keepers = Keepers(storage.join(run_url, "keepers.parquet"), num_removed=0)
    if verdicts:
        labels = clusters["cluster_id"].to_numpy()
        keepers = publish_heeded(keepers, labels, collection, verdicts, config)
    eps = eps_of(images["camera"], config)
    table = manifest_table(
        images,
        clusters,
        storage.read_table(keepers.url, KEEPERS),
        eps=eps,
        reasons=read_reasons(keepers),
    )
    matches_url = storage.join(run_url, "matches.parquet")
    if storage.exists(matches_url):
        matches = storage.read_table(matches_url, MATCHES)
        table = with_library(table, images, matches, eps=eps, verdicts=verdicts)
    counted = ("counts", "schema_version", DIGEST, VERDICTS)
    metadata = {name: text for name, text in manifest.metadata.items() if name not in counted}
    written = publish_manifest(table, metadata | {"run_id": run_id}, run_url, collection.heeded)
    correct_library(summary.run_id, written, collection, config)
    make_report(written, config, 0, {})
    return read_manifest(url)


def correct_library(
    run_id: str, manifest: Manifest, compared: Collection, config: DedupConfig
) -> None:
    """Let later nights know what the night keeps now, if they know what it kept."""
    folder_url = library_url(storage.absolute_url(config.workspace_url), config.features)
    night_id = night_of_run(segment_names(folder_url), run_id)
    if night_id is not None:
        collection = replace(
            compared,
            images_url=storage.join(manifest.run_url, "images.parquet"),
            features_url=storage.join(manifest.run_url, "features.npy"),
        )
        publish_segment(folder_url, night_id, collection, manifest)


def compared_images(
    run_id: str, run_url: str, num_images: int, heeded: Heeded | None
) -> Collection:
    """The images of a run that were compared with each other: those the library has not."""
    names = ("new-images.parquet", "new-features.npy")
    if not storage.exists(storage.join(run_url, names[0])):
        names = ("images.parquet", "features.npy")
    images_url, features_url = (storage.join(run_url, name) for name in names)
    items = storage.read_table(images_url, IMAGES, ["item_id"])
    return Collection(
        run_id=run_id,
        run_url=run_url,
        images_url=images_url,
        features_url=features_url,
        num_images=num_images,
        num_items=items.num_rows - items["item_id"].null_count,
        largest_partition=0,
        num_missing=0,
        heeded=heeded,
    )


def is_written(run_url: str) -> bool:
    """Tell whether a run has a manifest, and a report, of which the summary is the last file."""
    return all(
        storage.exists(storage.join(run_url, name)) for name in ("manifest.parquet", "summary.json")
    )


def workspace_for(manifest: LoadedManifest, workspace_url: str | None) -> str:
    """The workspace that remembers a review.

    Raises:
        ReviewError: The manifest lies in no workspace and none was named.
    """
    if workspace_url is not None:
        return storage.absolute_url(workspace_url)
    found = workspace_of(manifest.url, manifest.summary.run_id)
    if found is None:
        raise ReviewError(
            f"the manifest lies in no workspace, so name one with --workspace: {manifest.url}"
        )
    return found


def images_of(manifest: LoadedManifest) -> pa.Table:
    """Read the images that a run decided about, and check that all is there to decide anew.

    Returns:
        A table of `schemas.IMAGES`, in the order of the manifest.

    Raises:
        ArtifactError: What the run left is missing, damaged, or of another run.
    """
    run_url = manifest.url.rpartition("/")[0]
    images = storage.read_table(storage.join(run_url, "images.parquet"), IMAGES)
    same = ("url", "size_bytes", "etag", "sha256")
    own = own_rows(manifest.table)
    if not all(images[name].equals(own[name]) for name in same):
        raise ArtifactError(f"images.parquet is not that of the manifest: {manifest.url}")
    storage.read_table(storage.join(run_url, "keepers.parquet"), KEEPERS)
    features_url = storage.join(run_url, "features.npy")
    num_items = images.num_rows - images["item_id"].null_count
    try:
        found = open_features(features_url).shape[0]
    except FileNotFoundError:
        raise ArtifactError(
            f"expected the features of the run, found nothing: {features_url}"
        ) from None
    except (ValueError, EOFError) as error:
        raise ArtifactError(f"features are damaged: {features_url} ({error})") from None
    if found != num_items:
        raise ArtifactError(f"expected {num_items} features, found {found}: {features_url}")
    return images


def config_of(manifest: LoadedManifest, workspace_url: str) -> DedupConfig:
    """How the run of a manifest decided.

    Raises:
        ArtifactError: It says so in settings that this version does not know.
    """
    places = {"source_url": manifest.summary.source_url, "workspace_url": workspace_url}
    try:
        return load_config(None, json.loads(manifest.metadata["config"]) | places)
    except ConfigError as error:
        raise ArtifactError(
            f"the manifest was decided otherwise: {error}: {manifest.url}"
        ) from None


def clusters_of(manifest: LoadedManifest, images: pa.Table) -> pa.Table:
    """The columns `image_id` and `cluster_id` of `schemas.CLUSTERS`, in the order of the items."""
    clustered = images.append_column("cluster_id", own_rows(manifest.table)["cluster_id"])
    items = clustered.filter(pc.is_valid(clustered["item_id"])).sort_by("item_id")
    return items.select(["image_id", "cluster_id"]).combine_chunks()


def copy_artifacts(from_url: str, run_url: str) -> None:
    """Give a run what it shares with another: images, features, keepers, sweep and index."""
    for name in (*_DECIDING, *_BESIDE, *_OF_LIBRARY):
        url, to_url = storage.join(from_url, name), storage.join(run_url, name)
        if name in _DECIDING or storage.exists(url):
            copy_file(url, to_url)


def copy_file(url: str, to_url: str) -> None:
    """Copy an artifact, which then appears in one step."""
    storage.publish(to_url, lambda path: shutil.copyfile(storage.local_path(url), path))


def num_changed(before: LoadedManifest, after: LoadedManifest, action: str, other: str) -> int:
    """Count the images that had one action and have another now; both list the same images."""
    is_changed = pc.and_(
        pc.equal(own_rows(before.table)["action"], action),
        pc.equal(own_rows(after.table)["action"], other),
    )
    return pc.sum(is_changed).as_py() or 0
