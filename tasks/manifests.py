"""Reads manifests back: the contract between deciding and acting."""

from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from tasks import storage
from tasks.errors import ArtifactError
from tasks.schemas import MANIFEST, SCHEMA_VERSION
from tasks.summary import Summary, summarize


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest and what it amounts to."""

    table: pa.Table
    summary: Summary


def manifest_url_of(workspace_url: str, run_id: str) -> str:
    """Where the manifest of a run lies."""
    return storage.join(storage.absolute_url(workspace_url), "runs", run_id, "manifest.parquet")


def report_url_of(manifest_url: str) -> str:
    """Where the report beside a manifest lies."""
    return storage.join(manifest_url.rpartition("/")[0], "report.html")


def read_manifest(url: str) -> LoadedManifest:
    """Read a manifest and check that this version understands it.

    Raises:
        ArtifactError: It is missing, no manifest, or of another schema version.
    """
    url = storage.absolute_url(url)
    table = storage.read_table(url, MANIFEST)
    metadata = storage.read_metadata(url)
    version = metadata.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise ArtifactError(
            f"manifest has schema version {version}, expected {SCHEMA_VERSION}: {url}"
        )
    summary = summarize(table, metadata, manifest_url=url, report_url=report_url_of(url))
    return LoadedManifest(table=table, summary=summary)


def write_csv(manifest: pa.Table, file: BinaryIO) -> None:
    """Write a manifest as CSV with a header line."""
    pyarrow.csv.write_csv(manifest, file)
