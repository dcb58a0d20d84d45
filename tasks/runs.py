"""A finished run as others read it: its decisions, what it knew of its images, its settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from config import DedupConfig
from tasks import storage
from tasks.comparisons import Features
from tasks.errors import ArtifactError
from tasks.manifests import LoadedManifest, manifest_url_of, own_rows, read_manifest
from tasks.schemas import IMAGES


@dataclass(frozen=True)
class Run:
    """A run whose manifest was read and believed."""

    run_id: str
    run_url: str
    manifest: LoadedManifest
    """Its table is without the rows of keepers of earlier nights."""
    images: pa.Table
    """Table of `schemas.IMAGES`, sorted by URL as the manifest is."""
    config: DedupConfig
    """The settings that decided; the number format has a name."""

    @property
    def source_url(self) -> str:
        """The folder of images that the run was about."""
        return self.manifest.summary.source_url

    @property
    def features_url(self) -> str:
        """The matrix of features; its row i is item i."""
        return storage.join(self.run_url, "features.npy")


def open_run(workspace_url: str, run_id: str) -> Run:
    """Read the manifest of a run and the table of its images.

    Args:
        workspace_url: Any spelling of the workspace.
        run_id: As `dedup run` printed it.

    Raises:
        ArtifactError: Manifest or table are missing or damaged, or not about the same images.
    """
    manifest = read_manifest(manifest_url_of(workspace_url, run_id))
    manifest = replace(manifest, table=own_rows(manifest.table))
    run_url = manifest.url.rpartition("/")[0]
    images_url = storage.join(run_url, "images.parquet")
    images = storage.read_table(images_url, IMAGES)
    if images["url"] != manifest.table["url"]:
        raise ArtifactError(
            f"expected the {manifest.table.num_rows} images of the manifest, found others: "
            f"{images_url}"
        )
    said = json.loads(storage.read_metadata(manifest.url)["config"])
    # The real places come in afterwards: they are no templates, whatever characters they have.
    places = {"source_url": "source", "workspace_url": "workspace"}
    try:
        config = DedupConfig.model_validate(places | said)
    except ValidationError:
        raise ArtifactError(
            f"the run was decided by settings that this version does not know: {manifest.url}"
        ) from None
    places = {"source_url": manifest.summary.source_url, "workspace_url": workspace_url}
    return Run(
        run_id=manifest.summary.run_id,
        run_url=run_url,
        manifest=manifest,
        images=images,
        config=config.model_copy(update=places),
    )


def read_features(features_url: str, items: Sequence[int]) -> Features:
    """Read the features of some items and nothing else of the matrix.

    Args:
        features_url: The matrix, on any store.
        items: Rows of it.

    Returns:
        `(n, D)` float32 of unit length.

    Raises:
        ArtifactError: The matrix is missing or has no such rows.
    """
    try:
        with storage.open_file(features_url) as file:
            np.lib.format.read_magic(file)
            (_, dim), _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            features = np.empty((len(items), dim), np.float32)
            for row, item in enumerate(items):
                file.seek(start + item * dim * dtype.itemsize)
                features[row] = np.frombuffer(file.read(dim * dtype.itemsize), dtype)
    except FileNotFoundError:
        raise ArtifactError(
            f"expected the features of a run, found nothing: {features_url}"
        ) from None
    except ValueError:
        raise ArtifactError(f"expected features of {len(items)} items: {features_url}") from None
    return features
