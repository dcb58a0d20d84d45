"""What a manifest amounts to: counts, bytes and cost."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter

from tasks.comparisons import Eps
from tasks.distances import within
from tasks.partitions import eps_of_rows, partitioned_by
from tasks.references import GateCheck
from tasks.schemas import KNOWN
from tasks.verdicts import SAME_SCENE, STAYS


class Counts(BaseModel):
    """What can be counted in the rows of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int
    num_unreadable: int
    """Rows that are skipped, whatever the reason."""
    num_exact_copies: int
    """Readable images whose content another readable image, earlier in the manifest, has too."""
    num_clusters: int
    cluster_sizes: dict[int, int]
    """Number of clusters of each size, noise left out."""
    num_noise: int
    num_keep: int
    num_remove: int
    num_remove_for_earlier: int
    """Removed images whose keeper was kept by an earlier night and is no image of this one."""
    num_kept_before: int
    """Images that stay because an earlier night kept them."""
    num_orphans: int
    """Removed images whose keeper is farther away than eps, although no person said that they show
    one scene; 0 unless keepers are `first`."""
    bytes_total: int
    bytes_saved: int
    percent_annotation_left: float
    """Kept images as a percentage of the readable ones; 100 when there are none."""


class Alert(BaseModel):
    """Something that a person should hear of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["shards.failed", "recall.low", "drift"]
    message: str
    """One sentence."""
    numbers: dict[str, float] = {}
    """What it rests on, by name."""


class Summary(Counts):
    """A run in numbers; `dedup run --json` prints it."""

    run_id: str
    source_url: str
    manifest_url: str
    report_url: str
    is_complete: bool
    """False when images are missing because their shard failed."""
    eps: float
    """Largest cosine distance of a twin, but for cameras that have one of their own."""
    recall: float
    """Measured share of the pairs within eps that the search found."""
    is_search_exact: bool
    weights_digest: str
    gate: GateCheck | None
    """What the change gate did; None when it was off."""
    num_embedded: int | None
    """Images that went through VGG16 in this execution; the others had features already. None when
    the summary was made from a manifest alone."""
    num_ignored: dict[str, int]
    """Files of the source that are no images of the run, by reason."""
    eps_of_cameras: dict[str, float] = {}
    """The eps of the cameras that have one of their own, by the pattern of their names."""
    num_stay_reviewed: int = 0
    """Images that stay because a person said so."""
    num_go_reviewed: int = 0
    """Images that go beyond eps, because a person said that their group shows one scene."""
    cost_saved: float | None
    """Removed images times the price per image, when there is one."""
    cost_left: float | None
    seconds: dict[str, float]
    """Wall time of each stage of this execution."""
    executed_at: AwareDatetime | None = None
    """When this execution ended. As the next three None when the summary was made from a manifest
    alone."""
    night_id: str | None = None
    """The listing that was decided about."""
    settings_digest: str | None = None
    """Names the settings that decided, and the weights."""
    mean_nearest_distance: float | None = None
    """Mean cosine distance of an image to the nearest other one of its night, over the images that
    the sweep of eps compared."""
    alerts: tuple[Alert, ...] = ()
    """What a person should hear of."""


def count_decisions(manifest: pa.Table, *, eps: Eps) -> Counts:
    """Count what a manifest decides.

    Args:
        manifest: Table of `schemas.MANIFEST`.
        eps: Largest cosine distance to a keeper that makes no orphan, for all rows or for each.
    """
    largest = pa.array(np.broadcast_to(eps, manifest.num_rows), pa.float64())
    manifest = manifest.append_column("eps", largest)
    is_earlier = pc.equal(manifest["action"], "library")
    earlier, manifest = manifest.filter(is_earlier), manifest.filter(pc.invert(is_earlier))
    actions = Counter(
        {
            count["values"]: count["counts"]
            for count in pc.value_counts(manifest["action"]).to_pylist()
        }
    )
    readable = manifest.filter(pc.not_equal(manifest["action"], "skip"))
    removed = manifest.filter(pc.equal(manifest["action"], "remove"))
    is_said = pc.equal(removed["reason"], SAME_SCENE).to_numpy()
    is_near = within(removed["distance"].to_numpy(), removed["eps"].to_numpy())
    labels = readable["cluster_id"].to_numpy()
    _, images_of_cluster = np.unique(labels[labels >= 0], return_counts=True)
    sizes, times = np.unique(images_of_cluster, return_counts=True)
    num_distinct = pc.count_distinct(readable["sha256"]).as_py()
    return Counts(
        num_images=manifest.num_rows,
        num_unreadable=actions["skip"],
        num_exact_copies=readable.num_rows - num_distinct,
        num_clusters=len(images_of_cluster),
        cluster_sizes=dict(zip(sizes.tolist(), times.tolist(), strict=True)),
        num_noise=int((labels == -1).sum()),
        num_keep=actions["keep"],
        num_remove=actions["remove"],
        num_remove_for_earlier=_count(pc.is_in(removed["keeper_url"], value_set=earlier["url"])),
        num_kept_before=_count(
            pc.and_(pc.equal(readable["action"], "keep"), pc.equal(readable["reason"], KNOWN))
        ),
        num_orphans=int((~is_near & ~is_said).sum()),
        bytes_total=pc.sum(manifest["size_bytes"]).as_py() or 0,
        bytes_saved=pc.sum(removed["size_bytes"]).as_py() or 0,
        percent_annotation_left=(
            round(100.0 * actions["keep"] / readable.num_rows, 2) if readable.num_rows else 100.0
        ),
    )


def summarize(
    manifest: pa.Table,
    metadata: Mapping[str, str],
    *,
    manifest_url: str,
    report_url: str,
    price_per_image: float | None = None,
    num_embedded: int | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Summary:
    """Summarise a run from its manifest.

    Args:
        manifest: Table of `schemas.MANIFEST`.
        metadata: The manifest's own metadata.
        manifest_url: Where it lies.
        report_url: Where the report lies.
        price_per_image: Cost of annotating one image.
        num_embedded: Images embedded by this execution, if it is known.
        seconds: Wall time of its stages, if it is known.
    """
    counts = count_decisions(manifest, eps=eps_of_rows(manifest, metadata))
    price = price_per_image
    return Summary(
        **counts.model_dump(),
        run_id=metadata["run_id"],
        source_url=metadata["source_url"],
        manifest_url=manifest_url,
        report_url=report_url,
        is_complete=metadata["is_complete"] == "true",
        eps=float(metadata["eps"]),
        eps_of_cameras=partitioned_by(metadata).as_config().eps_of_cameras(),
        recall=float(metadata["recall"]),
        is_search_exact=metadata["is_search_exact"] == "true",
        weights_digest=metadata["weights_digest"],
        gate=TypeAdapter(GateCheck | None).validate_json(metadata.get("gate", "null")),
        num_embedded=num_embedded,
        num_ignored=json.loads(metadata["num_ignored"]),
        num_stay_reviewed=pc.sum(pc.starts_with(manifest["reason"], STAYS)).as_py() or 0,
        num_go_reviewed=pc.sum(pc.equal(manifest["reason"], SAME_SCENE)).as_py() or 0,
        cost_saved=None if price is None else round(price * counts.num_remove, 2),
        cost_left=None if price is None else round(price * counts.num_keep, 2),
        seconds=dict(seconds or {}),
    )


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """The summary as labelled values for people, in reading order."""
    sizes = ", ".join(f"{count} of {size}" for size, count in largest_first(summary.cluster_sizes))
    ignored = ", ".join(f"{count} {reason}" for reason, count in summary.num_ignored.items())
    rows = [
        ("run", summary.run_id),
        ("source", summary.source_url),
        *(("alert", alert.message) for alert in summary.alerts),
        ("images", f"{summary.num_images:,}"),
        ("unreadable (skipped)", f"{summary.num_unreadable:,}"),
        ("exact copies", f"{summary.num_exact_copies:,}"),
        ("clusters", f"{summary.num_clusters:,}" + (f" ({sizes} images)" if sizes else "")),
        ("noise (always kept)", f"{summary.num_noise:,}"),
        ("keep", _kept(summary)),
        ("remove", _removed(summary)),
        ("orphans", f"{summary.num_orphans:,}"),
        ("reviewed", _reviewed(summary)),
        ("bytes saved", f"{summary.bytes_saved:,} of {summary.bytes_total:,}"),
        ("annotation cost left", f"{summary.percent_annotation_left:.1f} %"),
        ("annotation cost", _cost(summary)),
        ("eps", eps_text(summary.eps, summary.eps_of_cameras)),
        ("recall of pairs within eps", _recall(summary)),
        ("change gate", "" if summary.gate is None else _gate(summary.gate)),
        ("complete night", "yes" if summary.is_complete else "NO: some shards failed"),
        ("embedded now", "" if summary.num_embedded is None else f"{summary.num_embedded:,}"),
        ("left out of the listing", ignored or "nothing"),
        ("weights", f"VGG16 ImageNet, sha256 {summary.weights_digest}"),
        ("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in summary.seconds.items())),
        ("manifest", summary.manifest_url),
        ("report", summary.report_url),
    ]
    return [(label, value) for label, value in rows if value]


def eps_text(eps: float, eps_of_cameras: Mapping[str, float]) -> str:
    """The eps of a run, and that of the cameras that have one of their own."""
    others = (f"; {own:g} for cameras {pattern!r}" for pattern, own in eps_of_cameras.items())
    return f"{eps:g}{''.join(others)}"


def largest_first(cluster_sizes: Mapping[int, int], limit: int = 8) -> list[tuple[int, int]]:
    """The largest cluster sizes and how many clusters have them."""
    return sorted(cluster_sizes.items(), reverse=True)[:limit]


def summary_markdown(summary: Summary) -> str:
    """The summary as a Markdown table, for the Prefect UI."""
    return markdown_table(summary_rows(summary))


def markdown_table(rows: Iterable[tuple[str, str]]) -> str:
    """Labelled values as a Markdown table, whatever characters they hold."""
    lines = ["| | |", "| --- | --- |"]
    for label, value in rows:
        cell = " ".join(value.split()).replace("|", r"\|")
        lines.append(f"| {label} | {cell} |")
    return "\n".join(lines)


def _kept(summary: Summary) -> str:
    before = f", {summary.num_kept_before:,} of them by an earlier night"
    return f"{summary.num_keep:,}" + before * (summary.num_kept_before > 0)


def _removed(summary: Summary) -> str:
    earlier = f", {summary.num_remove_for_earlier:,} of them for images of earlier nights"
    return f"{summary.num_remove:,}" + earlier * (summary.num_remove_for_earlier > 0)


def _cost(summary: Summary) -> str:
    if summary.cost_saved is None:
        return ""
    return f"{summary.cost_left:,.2f} left, {summary.cost_saved:,.2f} saved"


def _count(values: pa.ChunkedArray) -> int:
    return pc.sum(values).as_py() or 0


def _gate(gate: GateCheck) -> str:
    error = "unknown" if gate.largest_error is None else f"{gate.largest_error:.4f}"
    checked = f"largest error of {gate.num_samples:,} samples {error}"
    if gate.is_trusted:
        return f"{gate.num_gated:,} frames stand on another; {checked}"
    return f"off for this night; {checked}"


def _reviewed(summary: Summary) -> str:
    stay, go = summary.num_stay_reviewed, summary.num_go_reviewed
    return f"{stay:,} stay, {go:,} go beyond eps as one scene" if stay or go else ""


def _recall(summary: Summary) -> str:
    how = "every pair compared" if summary.is_search_exact else "approximate search"
    return f"{summary.recall:.4f} ({how})"
