"""Scores a run against groups that people made, as it decided and at other values of eps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks import blas, storage
from tasks.cells import Cell, open_features, partition_ranges
from tasks.comparisons import Features, unite
from tasks.errors import ArtifactError
from tasks.human_groups import NamedImages, find_named, read_groups
from tasks.measures import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Values,
    average_precisions,
    count_pairs,
    draw_groups,
    interval,
    ratio,
)
from tasks.runs import Run, open_run
from tasks.stage06_find_neighbors import cores_of_cell, links_of_cell
from tasks.stage07_cluster_images import Labels, are_large, dbscan_labels, split_links
from tasks.stage08_choose_keepers import cover_keepers, first_keepers, quality_ranks, url_ranks
from tasks.stage08b_sweep_eps import EPS_VALUES
from tasks.summary import eps_text

MAX_COMPARED = 20_000
"""Images that are compared with each other in the sweep; of more, whole groups are drawn."""

MAX_NAMED = 20

Groups = NDArray[np.int64]
"""`(N,)` group of each image, numbered from 0; -1 where nobody has said."""


class Estimate(BaseModel):
    """A measure and its 95 % interval; None where nothing can be measured."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    low: float | None
    high: float | None


class Scores(BaseModel):
    """What the decisions at one eps are worth."""

    model_config = ConfigDict(frozen=True)

    eps: float
    num_clusters: int
    """Clusters that have images with a group."""
    num_remove: int
    """Images with a group that would go."""
    precision: Estimate
    """Share of the pairs in one cluster that are of one group."""
    recall: Estimate
    """Share of the pairs of one group that are in one cluster."""
    f1: Estimate
    adjusted_rand: Estimate
    removal_precision: Estimate
    """Share of the images to remove whose keeper is of their own group."""
    removal_recall: Estimate
    """Such images as a share of those that could go: all but one of each group."""
    removal_f1: Estimate
    num_orphans: int
    """Images to remove whose keeper is of another group."""
    num_lost_groups: int
    """Groups all of whose images would go."""
    num_unjudged: int
    """Images to remove whose keeper has no group."""


class Evaluation(BaseModel):
    """A run as people see it; `dedup evaluate --json` prints it."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    groups_url: str
    num_images: int
    """Images with a group that are scored."""
    num_groups: int
    num_unnamed: int
    """Readable images of the run that have no group."""
    num_unreadable: int
    """Images with a group that the run could not read, and so neither clustered nor removed."""
    num_unknown: int
    """Names that are no image of the run."""
    not_scored: tuple[str, ...]
    """The first of these names."""
    confidence: float
    num_resamples: int
    seed: int
    num_compared: int
    """Images that are ranked, and clustered again in the sweep; of more, whole groups are drawn."""
    mean_average_precision: Estimate
    """Of the ranking of all others by cosine distance, for images that are not alone in a group."""
    scores: Scores
    """As the run decided."""
    eps_of_cameras: dict[str, float] = {}
    """The eps of the cameras that have one of their own, by the pattern of their names."""
    sweep: tuple[Scores, ...]
    """As it would decide on the compared images alone, for each eps, taken for all cameras."""


@dataclass(frozen=True)
class Decisions:
    """What is decided of images with a group."""

    labels: Labels
    """`(N,)` clusters, -1 for noise."""
    is_removed: NDArray[np.bool_]
    keeper_groups: Groups
    """`(N,)` the group of the keeper of each removed image."""


@dataclass(frozen=True)
class Compared:
    """The images that are compared with each other, in the order of their items."""

    features: Features
    groups: Groups
    images: pa.Table
    """Rows of `schemas.IMAGES`."""


def evaluate(
    groups_url: str, *, run_id: str, workspace_url: str, with_sweep: bool = False, seed: int = 0
) -> Evaluation:
    """Score a run against groups that people made.

    Intervals are 95 % percentile bootstrap intervals over whole groups (Efron, 1979).

    Args:
        groups_url: CSV with the columns `path` (below the source, or a URL) and `group`.
        run_id: As `dedup run` printed it.
        workspace_url: Workspace of the run.
        with_sweep: Also decide at each eps from 0.005 to 0.3.
        seed: Seed of the resamples, and of the draw of groups where there are too many images.

    Raises:
        ArtifactError: Run or CSV are missing or damaged, or are not about the same images.
    """
    run = open_run(workspace_url, run_id)
    groups_url = storage.absolute_url(groups_url)
    named = find_named(run, read_groups(groups_url))
    if not len(named.rows):
        raise ArtifactError(f"the run could read none of the images of {groups_url}")
    chosen = choose_groups(named.groups, MAX_COMPARED, seed=seed)
    compared = compare(run, named.rows[chosen], named.groups[chosen])
    weights = draw_groups(int(compared.groups.max()) + 1, seed=seed)
    return Evaluation(
        run_id=run.run_id,
        groups_url=groups_url,
        num_images=len(named.rows),
        num_groups=int(named.groups.max()) + 1,
        num_unnamed=named.num_unnamed,
        num_unreadable=len(named.unreadable),
        num_unknown=len(named.unknown),
        not_scored=(*named.unknown, *named.unreadable)[:MAX_NAMED],
        confidence=CONFIDENCE,
        num_resamples=NUM_RESAMPLES,
        seed=seed,
        num_compared=len(compared.groups),
        mean_average_precision=mean_average_precision(compared, weights),
        scores=score(
            decided(run, named),
            named.groups,
            draw_groups(int(named.groups.max()) + 1, seed=seed),
            eps=run.config.eps,
        ),
        eps_of_cameras=run.config.eps_of_cameras(),
        sweep=tuple(sweep(run, compared, weights)) if with_sweep else (),
    )


def choose_groups(groups: Groups, max_images: int, *, seed: int) -> NDArray[np.int64]:
    """Choose the images of whole groups, drawn at random where not all are wanted.

    Returns:
        Sorted positions in `groups`, at most `max_images`.

    Raises:
        ArtifactError: The first group drawn is larger than that.
    """
    if len(groups) <= max_images:
        return np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    is_chosen = np.cumsum(np.bincount(groups)[order]) <= max_images
    if not is_chosen.any():
        raise ArtifactError(f"a group has more than the {max_images} images that can be compared")
    return np.flatnonzero(np.isin(groups, order[is_chosen]))


def compare(run: Run, rows: NDArray[np.int64], groups: Groups) -> Compared:
    """Bring together what is known of some images, in the order of their items."""
    images = run.images.take(pa.array(rows))
    order = pc.sort_indices(images["item_id"])
    images = images.take(order)
    items = images["item_id"].to_numpy()
    return Compared(
        features=open_features(run.features_url)[items],
        groups=np.unique(groups[order.to_numpy()], return_inverse=True)[1].astype(np.int64),
        images=images,
    )


def mean_average_precision(compared: Compared, weights: Values) -> Estimate:
    """How well cosine distance ranks an image's own group before all others."""
    precisions = average_precisions(compared.features, compared.groups)
    is_query = ~np.isnan(precisions)
    num_groups = weights.shape[1]
    of_group = np.bincount(compared.groups[is_query], precisions[is_query], num_groups)
    queries = np.bincount(compared.groups[is_query], minlength=num_groups)
    return estimate(ratio(weights @ of_group, weights @ queries))


def decided(run: Run, named: NamedImages) -> Decisions:
    """What the manifest decides of the images with a group."""
    table = run.manifest.table
    group_of_row = np.full(table.num_rows, -1, np.int64)
    group_of_row[named.rows] = named.groups
    keeper = pc.fill_null(pc.index_in(table["keeper_url"], value_set=table["url"]), -1).to_numpy()
    keeper = keeper[named.rows]
    is_removed = pc.equal(table["action"], "remove").to_numpy()[named.rows]
    return Decisions(
        labels=table["cluster_id"].to_numpy()[named.rows],
        is_removed=is_removed,
        # A keeper of an earlier night has no row here, and so no group.
        keeper_groups=np.where(is_removed & (keeper >= 0), group_of_row[keeper], -1),
    )


def sweep(run: Run, compared: Compared, weights: Values) -> Iterator[Scores]:
    """Decide as the run would at each eps, on the compared images alone, and score that."""
    partitions = partition_ranges(compared.images["camera"].combine_chunks())
    settings = run.config.clusters
    for eps in sorted({*EPS_VALUES, run.config.eps}):
        with blas.one_thread():
            labels = exact_labels(
                compared.features, partitions, eps=eps, min_samples=settings.min_samples
            )
            if settings.keepers == "cover":
                ranks = quality_ranks(compared.images)
                keepers = cover_keepers(compared.features, labels, ranks, eps=eps)
            else:
                keepers = first_keepers(labels, url_ranks(compared.images))
        decisions = Decisions(
            labels, keepers >= 0, np.where(keepers >= 0, compared.groups[keepers], -1)
        )
        yield score(decisions, compared.groups, weights, eps=eps)


def exact_labels(
    features: Features, partitions: list[tuple[int, int]], *, eps: float, min_samples: int
) -> Labels:
    """DBSCAN's labels by comparing every pair of a partition, block by block.

    Args:
        features: `(N, D)` float32 of unit length.
        partitions: Ranges of items that may be neighbours of each other.
        eps: Largest cosine distance that joins two items.
        min_samples: Items within eps, itself included, that make a core item.

    Returns:
        `(N,)` int32 labels, numbered by first appearance; -1 marks noise.
    """
    none = np.empty(0, np.int64)
    cells = [Cell(np.arange(start, stop), none, none, none) for start, stop in partitions]
    is_core = np.full(len(features), min_samples <= 2)
    if min_samples > 2:
        for cell in cells:
            is_core[cores_of_cell(features, cell, eps=eps, min_samples=min_samples)] = True
    component = np.arange(len(features), dtype=np.int32)
    borders = []
    for cell in cells:
        between_cores, to_borders = split_links(
            links_of_cell(features, cell, is_core, eps=eps), is_core
        )
        component = unite(component, *between_cores)
        borders.append(to_borders)
    if min_samples <= 2:
        is_core = are_large(component, min_samples)
    return dbscan_labels(component, is_core, borders)


def score(decisions: Decisions, groups: Groups, weights: Values, *, eps: float) -> Scores:
    """Score decisions.

    Args:
        decisions: What is decided of `N` images.
        groups: `(N,)` their groups, numbered from 0.
        weights: `(1 + B, G)` how often each group counts: once, and in each resample.
        eps: What they were decided with.
    """
    num_groups = weights.shape[1]
    pairs = count_pairs(decisions.labels, groups, weights)
    is_judged = decisions.is_removed & (decisions.keeper_groups >= 0)
    is_right = is_judged & (decisions.keeper_groups == groups)
    sizes = np.bincount(groups, minlength=num_groups)
    right = weights @ np.bincount(groups[is_right], minlength=num_groups)
    judged = weights @ np.bincount(groups[is_judged], minlength=num_groups)
    possible = weights @ (sizes - 1)
    num_removed = np.bincount(groups[decisions.is_removed], minlength=num_groups)
    return Scores(
        eps=eps,
        num_clusters=len(np.unique(decisions.labels[decisions.labels >= 0])),
        num_remove=int(decisions.is_removed.sum()),
        precision=estimate(pairs.precision()),
        recall=estimate(pairs.recall()),
        f1=estimate(pairs.f1()),
        adjusted_rand=estimate(pairs.adjusted_rand()),
        removal_precision=estimate(ratio(right, judged)),
        removal_recall=estimate(ratio(right, possible)),
        removal_f1=estimate(ratio(2 * right, judged + possible)),
        num_orphans=int((is_judged & ~is_right).sum()),
        num_lost_groups=int((num_removed == sizes).sum()),
        num_unjudged=int((decisions.is_removed & ~is_judged).sum()),
    )


def estimate(values: Values) -> Estimate:
    """A measure, which comes first, with the interval of its resamples, which follow."""
    if np.isnan(values[0]):
        return Estimate(value=None, low=None, high=None)
    low, high = interval(values[1:]) or (None, None)
    return Estimate(value=float(values[0]), low=low, high=high)


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the decisions of the run are worth, as labelled values for people."""
    found, scores = evaluation, evaluation.scores
    left_out = {
        "readable images of the run have no group": found.num_unnamed,
        "names are no image of the run": found.num_unknown,
        "images with a group are unreadable": found.num_unreadable,
    }
    rows = [
        ("run", found.run_id),
        ("groups", f"{found.num_images:,} images in {found.num_groups:,} groups"),
        ("not scored", "; ".join(f"{count:,} {what}" for what, count in left_out.items())),
        ("", ", ".join(map(repr, found.not_scored))),
        ("mean average precision", _with_interval(found.mean_average_precision)),
        ("eps", eps_text(scores.eps, found.eps_of_cameras)),
        ("pairs in one cluster", _measures(scores.precision, scores.recall, scores.f1)),
        ("adjusted Rand index", _with_interval(scores.adjusted_rand)),
        (
            "removed and keeper",
            _measures(scores.removal_precision, scores.removal_recall, scores.removal_f1),
        ),
        ("remove", f"{scores.num_remove:,} of {found.num_images:,}"),
        ("orphan removals", f"{scores.num_orphans:,}: the keeper is of another group"),
        ("lost groups", f"{scores.num_lost_groups:,}: none of their images is kept"),
        ("unjudged removals", _count(scores.num_unjudged, "the keeper has no group")),
        ("compared", _compared(found)),
        ("in the sweep", _best(found.sweep)),
    ]
    return [(label, value) for label, value in rows if value]


def sweep_lines(evaluation: Evaluation) -> list[str]:
    """The scores at each eps as lines of a table; that of the run is marked."""
    measures = ("precision", "recall", "F1", "adjusted Rand", "precision", "recall", "F1")
    head = "".join(f"{name:<19}" for name in measures)
    lines = [
        f"{'':8}{'pairs in one cluster':<76}removed images and their keepers",
        f"{'eps':<8}{head}{'remove':>7}{'orphans':>9}{'lost':>6}",
    ]
    for scores in evaluation.sweep:
        estimates = (
            *(scores.precision, scores.recall, scores.f1, scores.adjusted_rand),
            *(scores.removal_precision, scores.removal_recall, scores.removal_f1),
        )
        cells = "".join(f"{_with_interval(found):<19}" for found in estimates)
        mark = "*" if scores.eps == evaluation.scores.eps else ""
        counts = f"{scores.num_remove:>7}{scores.num_orphans:>9}{scores.num_lost_groups:>6}"
        lines.append(f"{scores.eps:<6g}{mark:<2}{cells}{counts}")
    if evaluation.eps_of_cameras:
        lines.append("Each line takes one eps for all cameras; in the run some have their own.")
    return lines


def _with_interval(found: Estimate) -> str:
    if found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} {found.low:.3f}-{found.high:.3f}"


def _measures(precision: Estimate, recall: Estimate, f1: Estimate) -> str:
    named = {"precision": precision, "recall": recall, "F1": f1}
    return ", ".join(f"{name} {_with_interval(found)}" for name, found in named.items())


def _count(number: int, meaning: str) -> str:
    return f"{number:,}: {meaning}" if number else ""


def _best(sweep: Sequence[Scores]) -> str:
    """The eps that removes best, and the largest one up to which it removes nothing wrong."""
    if not sweep:
        return ""
    best = max(sweep, key=lambda scores: scores.removal_f1.value or 0.0)
    harmless = list(takewhile(lambda scores: not scores.num_orphans, sweep))
    up_to = f"up to eps {harmless[-1].eps:g}" if harmless else "at no eps"
    return (
        f"best F1 of removals {_with_interval(best.removal_f1)} at eps {best.eps:g}; "
        f"no orphan removals {up_to}"
    )


def _compared(found: Evaluation) -> str:
    if found.num_compared == found.num_images:
        return ""
    return (
        f"{found.num_compared:,} images of whole groups drawn at random: the average precision and "
        "the sweep are of these, and look better than they would among all"
    )
