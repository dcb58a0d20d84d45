"""Ask of any image what it resembles: how similar two are, and what of a run is nearest to one."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig
from tasks import storage
from tasks.distances import cosine_distances, similarity_percent, within
from tasks.errors import ArtifactError
from tasks.looking_up import AskedImage, look_up
from tasks.machine import resolved, this_machine
from tasks.memo import Feature
from tasks.partitions import eps_of
from tasks.runs import Run, open_run, read_features
from tasks.stage11_build_index import load_index

DEFAULTS = DedupConfig(source_url="unused", workspace_url="unused")


@dataclass(frozen=True)
class Similarity:
    """How similar two images are, and what a run would make of it."""

    first: AskedImage
    second: AskedImage
    distance: float
    """Cosine distance of their features, in [0, 2]; exact copies have 0."""
    percent: float
    """Cosine similarity in percent: 100 for equal features."""
    eps: float
    is_exact_copy: bool
    """Whether both files have the same content."""
    would_be_merged: bool
    """Whether they are within eps of each other, and not known to be of different partitions."""


@dataclass(frozen=True)
class Neighbor:
    """One image of a run as seen from another image."""

    url: str
    distance: float
    """Exact cosine distance, in [0, 2]."""
    percent: float
    is_within_eps: bool
    """Within the eps of the partition that the neighbour is in."""
    is_exact_copy: bool
    partition: str
    cluster_id: int
    """-1 for an image that is like no other."""
    action: str
    """What the run decided: `keep` or `remove`."""


@dataclass(frozen=True)
class Neighborhood:
    """The nearest images of a run, the nearest first."""

    run_id: str
    image: AskedImage
    eps: float
    neighbors: tuple[Neighbor, ...]


def similarity(
    first: str,
    second: str,
    *,
    config: DedupConfig | None = None,
    workspace_url: str | None = None,
    run_id: str | None = None,
    eps: float | None = None,
) -> Similarity:
    """Compare any two images.

    A feature that the run or the workspace has of the very same file (URL, size and version tag) is
    taken from there; any other image is embedded now. A frame that the change gate gave the feature
    of another one is embedded too.

    Args:
        first: Local path or fsspec URL; with a run also a path below its source, or a file name
            that only one of its images has.
        second: Likewise.
        config: Settings when there is no run; the defaults when it is None.
        workspace_url: Workspace whose features may be used.
        run_id: Run of that workspace whose settings count.
        eps: Largest cosine distance that merges, in [0, 1]; by default that of run or config for
            their partition.

    Raises:
        ArtifactError: There is no such run, or its artifacts are damaged.
        SourceError: There is no such image, or several images have that name.
        UnreadableImageError: An image cannot be decoded.
        EngineError: This machine does not compute in the number format of the run.
    """
    run = None
    if run_id is not None:
        if workspace_url is None:
            raise ValueError("expected the workspace_url of the run, found None")
        run = open_run(workspace_url, run_id)
    settings = run.config if run else _with_named_format(config or DEFAULTS)
    one, a = look_up(first, settings, workspace_url=workspace_url, run=run)
    other, b = look_up(second, settings, workspace_url=workspace_url, run=run)
    distance = cosine_distances(a[np.newaxis], b[np.newaxis])
    if eps is None:
        eps = eps_for(one.partition or other.partition, settings)
    are_compared = None in (one.partition, other.partition) or one.partition == other.partition
    return Similarity(
        first=one,
        second=other,
        distance=float(distance[0]),
        percent=similarity_percent(float(distance[0])),
        eps=eps,
        is_exact_copy=one.sha256 == other.sha256,
        would_be_merged=bool(within(distance, eps)[0]) and are_compared,
    )


def neighbors_of(
    image: str, *, run_id: str, workspace_url: str, k: int = 10, search_k: int | None = None
) -> Neighborhood:
    """Find the images of a run that are nearest to one image.

    The Annoy index of the run proposes them; the distances are computed anew from the features.

    Args:
        image: One of the run's images (its URL, its path below the source, or a file name that only
            one of them has), or any other image, which is embedded with the settings of the run.
        run_id: As `dedup run` printed it.
        workspace_url: Workspace of the run.
        k: How many neighbours, at least 1; the image itself is none.
        search_k: Nodes of the index that are looked at; more find more. By default k times the
            number of trees.

    Raises:
        As `similarity`; and ArtifactError when the run has no image with a feature.
    """
    run = open_run(workspace_url, run_id)
    asked, feature = look_up(image, run.config, workspace_url=workspace_url, run=run)
    items = propose(run, feature, num_wanted=k + 1, search_k=search_k)
    if asked.item_id is not None:
        items = items[items != asked.item_id]
    items = items[:k]
    features = read_features(run.features_url, items.tolist())
    distances = cosine_distances(np.broadcast_to(feature, features.shape), features)
    decided = run.manifest.table.append_column("camera", run.images["camera"])
    rows = decided.take(pc.index_in(pa.array(items, pa.int32()), value_set=run.images["item_id"]))
    near = within(distances, eps_of(rows["camera"], run.config))
    neighbors = [
        Neighbor(
            url=row["url"],
            distance=float(distance),
            percent=similarity_percent(float(distance)),
            is_within_eps=bool(is_near),
            is_exact_copy=row["sha256"] == asked.sha256,
            partition=row["camera"],
            cluster_id=row["cluster_id"],
            action=row["action"],
        )
        for row, distance, is_near in zip(rows.to_pylist(), distances, near, strict=True)
    ]
    neighbors.sort(key=lambda neighbor: (neighbor.distance, neighbor.url))
    return Neighborhood(
        run_id=run.run_id,
        image=asked,
        eps=eps_for(asked.partition, run.config),
        neighbors=tuple(neighbors),
    )


def eps_for(partition: str | None, config: DedupConfig) -> float:
    """The eps of an image: that of its partition, where it is known to be in one."""
    return config.eps if partition is None else config.of_partition(partition).eps


def propose(
    run: Run, feature: Feature, *, num_wanted: int, search_k: int | None
) -> NDArray[np.int64]:
    """Ask the Annoy index of a run for items near a feature: `(n,)`, the nearest first.

    Raises:
        ArtifactError: The run has no index, or it is damaged or of other items.
    """
    index_url = storage.join(run.run_url, "index.ann")
    item_ids = run.images["item_id"]
    num_items = len(item_ids) - item_ids.null_count
    if not num_items or not storage.exists(index_url):
        raise ArtifactError(f"expected the index of a run, found none: {index_url}")
    try:
        index = load_index(storage.local_path(index_url))
    except OSError as error:
        raise ArtifactError(f"cannot read the index: {error}: {index_url}") from None
    if (found := index.get_n_items()) != num_items:
        raise ArtifactError(f"expected an index of {num_items} items, found {found}: {index_url}")
    nodes = -1 if search_k is None else search_k
    return np.array(index.get_nns_by_vector(feature, num_wanted, search_k=nodes), np.int64)


def _with_named_format(config: DedupConfig) -> DedupConfig:
    return config.model_copy(update={"features": resolved(config.features, this_machine())})
