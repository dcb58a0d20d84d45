"""Reads manifests back: the contract between deciding and acting."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from tasks import storage
from tasks.errors import ArtifactError
from tasks.partitions import PartitionedBy
from tasks.paths import as_folder, is_inside, is_spelt_once
from tasks.references import GateCheck
from tasks.schemas import MANIFEST, MANIFEST_VERSION, require_version
from tasks.summary import Summary, summarize
from tasks.verdicts import SAME_SCENE, STAYS

DIGEST = "digest"
"""The metadata entry that holds the digest of all the others and of the rows."""

VERDICTS = "verdicts"
"""The metadata entry that says which verdicts of people a manifest heeds; none where none do."""

_ROWS_PER_DIGEST_STEP = 10_000
_RUN_ID = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
_ACTIONS = ("keep", "remove", "skip", "library")
_STAYING = ("keep", "library")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest and what it amounts to."""

    url: str
    table: pa.Table
    summary: Summary
    digest: str
    partition_by: str | None
    """The expression that named the partitions of the run."""
    metadata: dict[str, str]
    """All that it says of itself, as text."""
    heeded: "HeededVerdicts | None"
    """What people had said when it was written; None when they had said nothing of its images."""


class HeededVerdicts(BaseModel):
    """Which verdicts of people a manifest heeds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    of_run: str = Field(pattern=_RUN_ID)
    """The run as it would be called had nobody said anything."""


class _Metadata(BaseModel):
    """What a manifest must say of itself, as text."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)

    run_id: str
    source_url: str
    config: Json[PartitionedBy]
    eps: float = Field(ge=0, le=1)
    weights_digest: str
    is_complete: bool
    recall: float = Field(ge=0, le=1)
    is_search_exact: bool
    num_ignored: Json[dict[str, int]]
    gate: Json[GateCheck] | None = None
    verdicts: Json[HeededVerdicts] | None = None


GATED = "within eps, gated"
"""Reason of an image that goes because of the feature of a frame it, or its keeper, stands on."""


def manifest_url_of(workspace_url: str, run_id: str) -> str:
    """Where the manifest of a run lies."""
    return storage.join(storage.absolute_url(workspace_url), "runs", run_id, "manifest.parquet")


def workspace_of(manifest_url: str, run_id: str) -> str | None:
    """The workspace that a manifest lies in, None when it lies elsewhere."""
    workspace_url = manifest_url.removesuffix(f"/runs/{run_id}/manifest.parquet")
    return None if workspace_url == manifest_url else workspace_url


def report_url_of(manifest_url: str) -> str:
    """Where the report beside a manifest lies."""
    return storage.join(manifest_url.rpartition("/")[0], "report", "index.html")


def manifest_digest(table: pa.Table, metadata: Mapping[str, str]) -> str:
    """Digest the rows and the metadata of a manifest, however they are stored.

    Args:
        table: Table of `schemas.MANIFEST`.
        metadata: Its metadata; an entry `digest` is left out.

    Returns:
        64 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    digest.update(
        json.dumps({k: v for k, v in metadata.items() if k != DIGEST}, sort_keys=True).encode()
    )
    columns = table.select(MANIFEST.names)
    for batch in columns.to_batches(max_chunksize=_ROWS_PER_DIGEST_STEP):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def read_manifest(url: str) -> LoadedManifest:
    """Read a manifest and check that it is whole and that this version understands it.

    Raises:
        ArtifactError: It is missing, no manifest, damaged, of another schema version, or says
            what no manifest can say: see `problems_of`.
    """
    url = storage.absolute_url(url)
    metadata = storage.read_metadata(url)
    require_version("manifest", metadata.get("schema_version"), MANIFEST_VERSION, url)
    table = storage.read_table(url, MANIFEST)
    if DIGEST not in metadata:
        raise ArtifactError(f"manifest has no digest; run the night again to write one: {url}")
    found = manifest_digest(table, metadata)
    if found != metadata[DIGEST]:
        raise ArtifactError(
            f"manifest was changed or damaged: its digest is {found[:12]}…, it says "
            f"{metadata[DIGEST][:12]}…: {url}"
        )
    try:
        said = _Metadata.model_validate(metadata)
    except ValidationError as error:
        names = sorted({str(problem["loc"][0]) for problem in error.errors()})
        raise ArtifactError(
            f"manifest metadata is missing or wrong: {', '.join(names)}: {url}"
        ) from None
    problems = problems_of(table, said.source_url)
    problems += problems_of_reasons(table, is_reviewed=said.verdicts is not None)
    if re.fullmatch(_RUN_ID, said.run_id) is None:
        problems.append(f"the run id {said.run_id!r} is none")
    if not is_spelt_once(said.source_url):
        problems.append(f"the source_url {said.source_url!r} is not spelt as a listing spells it")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ArtifactError(f"no manifest can say: {'; '.join(problems[:3])}{more}: {url}")
    return LoadedManifest(
        url=url,
        table=table,
        summary=summarize(table, metadata, manifest_url=url, report_url=report_url_of(url)),
        digest=found,
        partition_by=said.config.source.partition_by,
        metadata=metadata,
        heeded=said.verdicts,
    )


def problems_of(table: pa.Table, source_url: str) -> list[str]:
    """Say what is wrong with the rows of a manifest, whoever wrote it.

    Every image is in the source and has one row and one of the actions. A removed image names a
    keeper that is kept, and so never itself, nor one that is removed. Kept and removed images have
    a digest and a size. A keeper of an earlier night has a row with the action `library`; it may
    lie anywhere.

    Args:
        table: Table of `schemas.MANIFEST`.
        source_url: The source that its metadata names.
    """
    problems = [
        f"{table[name].null_count} rows without {name}"
        for name in ("url", "size_bytes", "etag", "cluster_id", "action", "reason")
        if table[name].null_count
    ]
    if problems:
        return problems
    times = pc.value_counts(table["url"])
    problems = [
        f"{repeated['values']!r} has {repeated['counts']} rows"
        for repeated in times.filter(pc.greater(times.field("counts"), 1)).to_pylist()
    ]
    keepers = pc.index_in(table["keeper_url"], value_set=table["url"])
    checked = table.append_column("keeper_action", table["action"].take(keepers))
    for row in checked.filter(pc.invert(_is_surely_right(checked, source_url))).to_pylist():
        problem = _problem_of(row, source_url)
        if problem is not None:
            problems.append(f"{problem}: {row['url']!r}")
    return problems


def problems_of_reasons(table: pa.Table, *, is_reviewed: bool) -> list[str]:
    """Say which rows claim a person's word that they cannot have.

    Args:
        table: Table of `schemas.MANIFEST`.
        is_reviewed: Whether the manifest's own metadata names verdicts that it heeds.
    """
    goes, stays = pc.equal(table["reason"], SAME_SCENE), pc.starts_with(table["reason"], STAYS)
    is_wrong = pc.or_(
        pc.and_(goes, pc.not_equal(table["action"], "remove")),
        pc.and_(stays, pc.not_equal(table["action"], "keep")),
    )
    if not is_reviewed:
        is_wrong = pc.or_(goes, stays)
    wrong = table.filter(pc.fill_null(is_wrong, False))
    columns = (wrong[name].to_pylist() for name in ("action", "reason", "url"))
    return [
        f"action {action} for the reason {reason!r}, which no person gave: {url!r}"
        for action, reason, url in zip(*columns, strict=True)
    ]


def _is_surely_right(table: pa.Table, source_url: str) -> pa.ChunkedArray:
    """Tell the rows that need no closer look, which is nearly all of them, column by column."""
    action, distance = table["action"], table["distance"]
    folder = as_folder(source_url)
    below = pc.utf8_slice_codeunits(table["url"], len(folder))
    is_inside = pc.and_(
        pc.starts_with(table["url"], folder),
        pc.invert(pc.match_substring_regex(below, r"^$|^[./]|/[./]")),
    )
    has_content = pc.and_(
        pc.fill_null(pc.match_substring_regex(table["sha256"], f"^{_SHA256.pattern}$"), False),
        pc.greater_equal(table["size_bytes"], 0),
    )
    has_twin = pc.and_(
        pc.fill_null(pc.is_in(table["keeper_action"], pa.array(_STAYING)), False),
        pc.fill_null(pc.and_(pc.greater_equal(distance, 0), pc.less_equal(distance, 2)), False),
    )
    is_right = pc.case_when(
        pc.make_struct(
            pc.equal(action, "remove"),
            pc.is_in(action, pa.array(_STAYING)),
            pc.equal(action, "skip"),
        ),
        pc.and_(has_content, has_twin),
        pc.and_(has_content, pc.is_null(table["keeper_url"])),
        pc.is_null(table["keeper_url"]),
        pa.scalar(False),
    )
    return pc.and_(is_inside, is_right)


def _problem_of(row: Mapping[str, Any], source_url: str) -> str | None:
    action, keeper_url, distance = row["action"], row["keeper_url"], row["distance"]
    if action not in _ACTIONS:
        return f"unknown action {action!r}"
    if action == "library":
        if not is_spelt_once(row["url"]):
            return "not spelt as a listing spells it"
    elif not is_inside(row["url"], source_url):
        return f"not inside the source {source_url!r}"
    if action != "skip" and (
        _SHA256.fullmatch(row["sha256"] or "") is None or row["size_bytes"] < 0
    ):
        return "no digest or no size of its content"
    if action != "remove":
        return None if keeper_url is None else f"action {action} with a keeper"
    if keeper_url is None or row["keeper_action"] not in _STAYING:
        return f"its keeper is not kept ({keeper_url!r})"
    if distance is None or not 0 <= distance <= 2:
        return f"its distance to the keeper is {distance}"
    return None


def own_rows(manifest: pa.Table) -> pa.Table:
    """The rows that are images of the night itself, without keepers of earlier nights."""
    return manifest.filter(pc.not_equal(manifest["action"], "library"))


def write_csv(manifest: pa.Table, file: BinaryIO) -> None:
    """Write a manifest as CSV with a header line."""
    pyarrow.csv.write_csv(manifest, file)
