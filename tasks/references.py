"""What stages hand on: small frozen names of artifacts, never their content.

Dataclasses and not pydantic models, because Prefect maps over the latter as if they were lists.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inventory:
    """A listing of the source."""

    url: str
    night_id: str
    """Names this listing: the source's last folder and a digest of all that was found."""
    num_images: int


@dataclass(frozen=True)
class Shard:
    """The images one embed task handles: one row group of the plan."""

    plan_url: str
    number: int
    """Row group of the plan, from 0."""
    num_images: int
    first_url: str


@dataclass(frozen=True)
class FeatureFile:
    """The features of one shard."""

    url: str
    num_images: int
    num_unreadable: int
    num_embedded: int
    """Images that got a feature in it; exact copies go through VGG16 once."""
    seconds: float
    """Wall time of the task that wrote it."""


@dataclass(frozen=True)
class GateCheck:
    """What the change gate did in a night, and whether it is trusted."""

    num_gated: int
    """Images that have the feature of the frame they stand on."""
    num_samples: int
    """Images that would have had it but were embedded to measure the error."""
    largest_error: float | None
    """Largest cosine distance between the two features of a sample, None without samples."""
    is_trusted: bool
    """Otherwise all images of the night were embedded after all."""


@dataclass(frozen=True)
class Library:
    """What a night is compared with: the segments of earlier nights, oldest first."""

    folder_url: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Heeded:
    """What people said of the images of a run before it."""

    url: str
    digest: str
    """Of the verdicts: `Verdicts.digest`."""
    of_run: str
    """The run as it would be called had nobody said anything."""


@dataclass(frozen=True)
class Collection:
    """Everything known of the images of one run, and their features as one matrix."""

    run_id: str
    """Names the run: a digest of the night, the deciding settings and all that was read."""
    run_url: str
    images_url: str
    features_url: str
    num_images: int
    num_items: int
    """Images with a feature."""
    largest_partition: int
    """Items of the partition that has most of them."""
    num_missing: int
    """Images that were never embedded because their shard failed."""
    heeded: Heeded | None = None
    """None when nobody has said anything of these images."""


@dataclass(frozen=True)
class Matches:
    """Which images of a run the library has, or has a twin of."""

    url: str
    num_known: int
    """Images that are in the library themselves."""
    num_matched: int
    """Images that have a twin there."""


@dataclass(frozen=True)
class Index:
    """The Annoy index of a run."""

    url: str
    items_url: str
    num_items: int


@dataclass(frozen=True)
class Cells:
    """Which items are compared with which."""

    url: str
    folder_url: str
    """Where the search in these cells puts what it finds."""
    depth: int
    """Cells that an item of a large partition is in; 0 compares every pair."""
    num_items: int
    cores_url: str | None = None
    """The core items, where a neighbour alone does not make one."""


@dataclass(frozen=True)
class SearchRange:
    """The items that one task compares: those at home in the cells, counted over all cells."""

    start: int
    stop: int


@dataclass(frozen=True)
class CoreFile:
    """The core items of one search range."""

    url: str
    num_cores: int


@dataclass(frozen=True)
class LinkFile:
    """What one search range connects."""

    url: str
    num_links: int


@dataclass(frozen=True)
class Clusters:
    """DBSCAN's label of every item."""

    url: str
    num_clusters: int


@dataclass(frozen=True)
class Neighbors:
    """How well the pairs within eps were searched."""

    recall: float
    """Share of the pairs within eps of a random sample that the clusters honour, in [0, 1]."""
    depth: int
    """Depth of the search that was good enough; 0 compared every pair."""


@dataclass(frozen=True)
class Keepers:
    """The keeper of every removed item."""

    url: str
    num_removed: int
    reasons_url: str | None = None
    """Why images stay or go of which people have said something; None when they have not."""


@dataclass(frozen=True)
class Sweep:
    """What would be kept at other values of eps."""

    url: str


@dataclass(frozen=True)
class Manifest:
    """The decision of a run."""

    url: str
    run_url: str


@dataclass(frozen=True)
class Compaction:
    """What became of a folder whose small files were merged."""

    folder_url: str
    num_files_before: int
    num_files: int
