"""Groups that people made: a CSV file that says of images which of them belong together."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks import storage
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.runs import Run

COLUMNS = ("path", "group")


@dataclass(frozen=True)
class NamedImages:
    """The images of a run that people have put into groups."""

    rows: NDArray[np.int64]
    """`(N,)` rows of the run's images, ascending; all have a feature."""
    groups: NDArray[np.int64]
    """`(N,)` the group of each, numbered from 0."""
    unreadable: tuple[str, ...]
    """Names of images of the run that have no feature."""
    unknown: tuple[str, ...]
    """Names that are no image of the run."""
    num_unnamed: int
    """Images of the run with a feature that have no group."""


def read_groups(url: str) -> dict[str, str]:
    """Read the group of every name, in the order of the file.

    Args:
        url: CSV in UTF-8 with a header line and the columns `path` and `group`; others are ignored.

    Raises:
        ArtifactError: It is missing, is something else, or names an image twice; says which line.
    """
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingArtifactError(f"expected a CSV file of groups, found nothing: {url}") from None
    except IsADirectoryError:
        raise ArtifactError(f"expected a CSV file of groups, found a folder: {url}") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"expected a CSV file in UTF-8 ({error}): {url}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    groups: dict[str, str] = {}
    try:
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            found = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
            raise ArtifactError(
                f"expected a header line with {' and '.join(missing)}, found {found}: {url}"
            )
        for row in reader:
            path, group = row["path"], row["group"]
            if not path or not group:
                raise ArtifactError(f"line {reader.line_num} has no path or no group: {url}")
            if path in groups:
                raise ArtifactError(f"line {reader.line_num} names {path!r} again: {url}")
            groups[path] = group
    except csv.Error as error:
        raise ArtifactError(f"no CSV after line {reader.line_num} ({error}): {url}") from None
    return groups


def find_named(run: Run, groups: Mapping[str, str]) -> NamedImages:
    """Find the images that people have put into groups.

    Args:
        run: The run.
        groups: Group of each name: a path below the source, or a URL.

    Raises:
        ArtifactError: Two names are the same image, or none is an image of the run.
    """
    names = list(groups)
    known = run.images["url"]
    rows = np.full(len(names), -1, np.int64)
    for spelling in (lambda name: name, partial(storage.join, run.source_url), _absolute):
        urls = pa.array(map(spelling, names), pa.string())
        found = pc.fill_null(pc.index_in(urls, value_set=known), -1).to_numpy()
        rows = np.where(rows < 0, found, rows)
    if (rows < 0).all():
        example = f", such as {names[0]!r}" if names else ""
        raise ArtifactError(
            f"none of the {len(names)} names{example} is an image of the run: expected paths below "
            f"{run.source_url}, or URLs"
        )
    values, first, times = np.unique(rows, return_index=True, return_counts=True)
    if (is_twice := (times > 1) & (values >= 0)).any():
        raise ArtifactError(f"the image {names[first[is_twice][0]]!r} has two names")
    has_feature = run.images["item_id"].is_valid().to_numpy()
    is_named = (rows >= 0) & has_feature[rows]
    order = np.flatnonzero(is_named)[np.argsort(rows[is_named])]
    labels = np.array(list(groups.values()), dtype=object)
    return NamedImages(
        rows=rows[order].astype(np.int64),
        groups=np.unique(labels[order], return_inverse=True)[1].astype(np.int64),
        unreadable=tuple(
            name for name, at in zip(names, rows, strict=True) if at >= 0 and not has_feature[at]
        ),
        unknown=tuple(name for name, at in zip(names, rows, strict=True) if at < 0),
        num_unnamed=int(has_feature.sum() - is_named.sum()),
    )


def _absolute(name: str) -> str:
    return storage.absolute_url(name) if name.startswith("/") and "\0" not in name else name
