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
    """Images that went through VGG16 for it."""


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


@dataclass(frozen=True)
class Index:
    """The Annoy index of a run."""

    url: str
    items_url: str
    num_items: int


@dataclass(frozen=True)
class SearchRange:
    """A range of items whose neighbours one task finds, and how deep it searches."""

    start: int
    stop: int
    depth: int
    """Factor on Annoy's `search_k`; 0 compares every pair."""


@dataclass(frozen=True)
class EdgeFile:
    """Pairs within eps found from one range of items."""

    url: str
    num_edges: int


@dataclass(frozen=True)
class Neighbors:
    """All pairs within eps, and how many of them the search is known to find."""

    edge_files: tuple[EdgeFile, ...]
    recall: float
    """Share of the pairs within eps of a random sample that were found, in [0, 1]."""
    depth: int
    """Depth of the search that was good enough; 0 compared every pair."""


@dataclass(frozen=True)
class Clusters:
    """DBSCAN's label of every item."""

    url: str
    num_clusters: int


@dataclass(frozen=True)
class Keepers:
    """The keeper of every removed item."""

    url: str
    num_removed: int


@dataclass(frozen=True)
class Manifest:
    """The decision of a run."""

    url: str
    run_url: str
