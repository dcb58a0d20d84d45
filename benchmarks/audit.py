"""Looks at what nights have left behind, without the code that decided about it.

It reads files, manifests and the features on the workspace, and compares all with all in float64.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Distances = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """What was found."""

    num_left: int
    """Readable images that are in their place."""
    num_unreadable: int
    num_gone: int
    """Images that a manifest let go and that are no longer in their place."""
    orphans: list[str]
    """Those of them whose keeper is not in its place, is another file, or is farther than eps."""
    kept_again: list[tuple[str, str]]
    """Pairs that are in their place and within eps, of one camera, kept by different runs."""
    num_beside: int
    """Images in their place within eps of another one that the same run has kept before them."""
    undecided: list[str]
    """Readable images in their place that no run has kept."""


def audit(source: Path, workspace: Path, manifests: Sequence[Path], *, eps: float) -> Audit:
    """Compare what is left with itself and with what is gone.

    Args:
        source: Folder with a folder for each night, and in it one for each camera.
        workspace: Where features are.
        manifests: Of all runs, in the order in which they decided.
        eps: Largest cosine distance of a twin.
    """
    features = features_of_contents(workspace)
    rows_of_runs = [rows_of(path) for path in manifests]
    kept_by: dict[Path, int] = {}
    going: dict[Path, tuple[Row, Row]] = {}
    for run, rows in enumerate(rows_of_runs):
        for path, row in rows.items():
            if row["action"] == "keep":
                kept_by.setdefault(path, run)
            if row["action"] == "remove":
                going[path] = row, rows[path_of(row["keeper_url"])]
    left = {path: digest(path) for path in sorted(source.rglob("*.*")) if path.is_file()}
    left = {path: sha256 for path, sha256 in left.items() if not path.name.startswith(".")}
    readable = [path for path, sha256 in left.items() if sha256 in features]
    orphans = [
        str(path)
        for path, (row, keeper) in going.items()
        if path not in left and not is_twin(left, features, row, keeper, eps)
    ]
    kept_again, num_beside = near_pairs(
        [path for path in readable if path in kept_by], left, features, kept_by, eps
    )
    return Audit(
        num_left=len(readable),
        num_unreadable=len(left) - len(readable),
        num_gone=sum(path not in left for path in going),
        orphans=orphans,
        kept_again=kept_again,
        num_beside=num_beside,
        undecided=[str(path) for path in readable if path not in kept_by],
    )


def features_of_contents(workspace: Path) -> dict[str, Distances]:
    """The feature of each readable content, by its SHA-256: `(512,)` float64."""
    found = {}
    for path in sorted(workspace.glob("features/*/*.parquet")):
        table = pq.read_table(path, columns=["sha256", "feature"])
        for sha256, feature in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if feature is not None:
                found[sha256] = np.array(feature, np.float64)
    return found


def rows_of(manifest: Path) -> dict[Path, Row]:
    """The rows of a manifest by the path of the image."""
    return {path_of(row["url"]): row for row in pq.read_table(manifest).to_pylist()}


def path_of(url: str) -> Path:
    """The file of a `file://` URL."""
    return Path(url.removeprefix("file://"))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_twin(
    left: Mapping[Path, str],
    features: Mapping[str, Distances],
    row: Row,
    keeper: Row,
    eps: float,
) -> bool:
    """Tell whether the keeper of a removed image is in its place and within eps of it."""
    is_there = left.get(path_of(keeper["url"])) == keeper["sha256"]
    return is_there and distance(features[row["sha256"]], features[keeper["sha256"]]) <= eps


def distance(a: Distances, b: Distances) -> float:
    """Cosine distance."""
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))


def near_pairs(
    paths: Sequence[Path],
    left: Mapping[Path, str],
    features: Mapping[str, Distances],
    kept_by: Mapping[Path, int],
    eps: float,
) -> tuple[list[tuple[str, str]], int]:
    """Find which kept images are within eps of each other.

    Returns:
        The pairs that different runs have kept, and how many images have one within eps that the
        same run has kept and that comes before them.
    """
    kept_again: list[tuple[str, str]] = []
    num_beside = 0
    for camera in sorted({path.parent.name for path in paths}):
        own = [path for path in paths if path.parent.name == camera]
        run_of = np.array([kept_by[path] for path in own])
        is_near = all_distances(np.stack([features[left[path]] for path in own])) <= eps
        is_near &= np.tri(len(own), k=-1, dtype=bool)
        is_same_run = run_of[:, None] == run_of
        num_beside += int((is_near & is_same_run).any(axis=1).sum())
        kept_again += [
            (str(own[i]), str(own[j])) for i, j in np.argwhere(is_near & ~is_same_run).tolist()
        ]
    return kept_again, num_beside


def all_distances(features: Distances) -> Distances:
    """Cosine distances of all pairs: `(N, N)` float64."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances: Distances = 1 - unit @ unit.T
    return distances


def missing(delivered: Counter[str], *folders: Path) -> Counter[str]:
    """Contents that were delivered and are in none of some folders, with how often.

    Args:
        delivered: How often each content was delivered, by its SHA-256.
        folders: Sources and quarantines.
    """
    there = Counter(
        digest(path) for folder in folders for path in folder.rglob("*.*") if path.is_file()
    )
    return delivered - there
