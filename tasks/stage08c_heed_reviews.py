"""Stage 8c: what people said in reviews, of this night or of earlier ones, corrects the keepers."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import open_features
from tasks.comparisons import ROWS_AT_ONCE, Eps, Features, Items, are_within
from tasks.distances import within
from tasks.partitions import eps_of
from tasks.references import Clusters, Collection, Keepers
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS, REASONS
from tasks.stage import stage
from tasks.stage04_collect_features import verdicts_among
from tasks.stage08_choose_keepers import (
    Labels,
    Ranks,
    cover_keepers,
    keeper_table,
    nearest_keepers,
    quality_ranks,
)
from tasks.verdicts import SAME_SCENE, STAYS, Verdicts, read_heeded

logger = logging.getLogger(__name__)

Flags = NDArray[np.bool_]

_FARTHEST = 2.0


@dataclass(frozen=True)
class Said:
    """What people said, item by item."""

    contents: NDArray[np.int64]
    """`(N,)` a number for the content of each item; equal ones are exact copies."""
    stays: Flags
    """`(N,)` the item goes for none but an exact copy, and of its copies in a cluster one stays."""
    is_meant: Flags
    """`(N,)` the item itself stays."""
    scene_of: NDArray[np.int32]
    """`(N,)` items of one number show one scene; -1 for those of which nobody said so."""
    apart: NDArray[np.int64]
    """`(P, 2)` contents of which neither goes for the other."""
    instead: NDArray[np.int64]
    """`(Q, 2)` contents that stay, and those that go for them where they are within eps."""

    def is_touched(self) -> Flags:
        """Tell of which items anything was said: `(N,)`."""
        paired = np.concatenate([self.apart.ravel(), self.instead.ravel()])
        touched: Flags = self.stays | (self.scene_of >= 0) | np.isin(self.contents, paired)
        return touched

    def may_go(self, items: Items, keepers: Items) -> Flags:
        """Tell which items may go for which keepers, pair by pair: `(n,)`."""
        a, b = self.contents[items], self.contents[keepers]
        is_apart = np.isin(_numbered(a, b), _numbered(self.apart[:, 0], self.apart[:, 1]))
        allowed: Flags = (a == b) | ~(self.stays[items] | is_apart)
        return allowed


@stage("heed_reviews")
def heed_reviews(
    keepers: Keepers, clusters: Clusters, collection: Collection, config: DedupConfig
) -> Keepers:
    """Publish the keepers as people want them; where nobody has said anything they stay."""
    if collection.heeded is None:
        return keepers
    return publish_heeded(
        keepers,
        storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_numpy(),
        collection,
        read_heeded(collection.heeded),
        config,
    )


def publish_heeded(
    keepers: Keepers,
    labels: Labels,
    collection: Collection,
    verdicts: Verdicts,
    config: DedupConfig,
) -> Keepers:
    """Read the keepers of a run, let the verdicts correct them, and publish what comes of it."""
    images = storage.read_table(collection.images_url, IMAGES)
    verdicts = verdicts_among(images, verdicts)  # not of those that the library has settled
    items = images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")
    features = open_features(collection.features_url)
    keeper_of = read_keepers(storage.read_table(keepers.url, KEEPERS), items)
    said = said_of_items(verdicts, items)
    ranks = quality_ranks(items)
    eps = eps_of(items["camera"], config)
    with blas.one_thread():
        heeded = heed(keeper_of, labels, ranks, features, said, eps=eps)
    table = keeper_table(items, heeded, features)
    is_forced = rows_that_stay(keeper_of, labels, ranks, said)
    url = storage.join(collection.run_url, "keepers-reviewed.parquet")
    reasons_url = storage.join(collection.run_url, "reasons.parquet")
    storage.publish_table(reasons_url, reason_table(items, table, is_forced, said, verdicts, eps))
    storage.publish_table(url, table)
    logger.info(
        "reviews: %d images stay that would have gone, %d go that would have stayed",
        ((keeper_of >= 0) & (heeded < 0)).sum(),
        ((keeper_of < 0) & (heeded >= 0)).sum(),
    )
    return Keepers(url=url, num_removed=table.num_rows, reasons_url=reasons_url)


def read_keepers(keepers: pa.Table, items: pa.Table) -> Items:
    """Number the keepers: `(N,)` int64, -1 for an item that is kept.

    Args:
        keepers: Table of `schemas.KEEPERS`.
        items: Column `image_id` of `schemas.IMAGES`, in the order of the items.
    """
    removal = pc.index_in(items["image_id"], value_set=keepers["image_id"])
    kept = pc.index_in(keepers["keeper_id"], value_set=items["image_id"]).take(removal)
    keeper_of: Items = pc.fill_null(kept, -1).to_numpy().astype(np.int64)
    return keeper_of


def said_of_items(verdicts: Verdicts, items: pa.Table) -> Said:
    """Find the items that verdicts speak of.

    Args:
        verdicts: Of contents that items have: see `Verdicts.among`.
        items: Columns `sha256` and `url` of `schemas.IMAGES`, in the order of the items.
    """
    contents = pc.dictionary_encode(items["sha256"].combine_chunks())
    number_of = {content: n for n, content in enumerate(contents.dictionary.to_pylist())}
    codes = contents.indices.to_numpy().astype(np.int64)
    scene_of_content = np.full(len(number_of), -1, np.int32)
    for scene, group in enumerate(verdicts.scenes):
        scene_of_content[[number_of[content] for content in group]] = scene
    stays, is_every = np.zeros((2, len(number_of)), np.bool_)
    for content, stay in verdicts.stays.items():
        stays[number_of[content]], is_every[number_of[content]] = True, stay.is_every
    meant = pa.array(
        [url for stay in verdicts.stays.values() for url in stay.urls], items["url"].type
    )
    is_named = pc.is_in(items["url"], value_set=meant).to_numpy()
    return Said(
        contents=codes,
        stays=stays[codes],
        is_meant=is_every[codes] | (stays[codes] & is_named),
        scene_of=scene_of_content[codes],
        apart=_pairs(verdicts.apart, number_of),
        instead=_pairs(verdicts.instead, number_of),
    )


def reason_table(
    items: pa.Table,
    keepers: pa.Table,
    is_forced: Flags,
    said: Said,
    verdicts: Verdicts,
    eps: Eps,
) -> pa.Table:
    """Say why images stay or go, where that is for what a person said.

    Args:
        items: Columns `image_id` and `sha256` of `schemas.IMAGES`, in the order of the items.
        keepers: Table of `schemas.KEEPERS`, as people want it.
        is_forced: `(N,)` the items that stay because a person said so.
        said: What people said of the items.
        verdicts: The same by content.
        eps: Largest cosine distance of a twin, for all items or for each.

    Returns:
        A table of `schemas.REASONS`.
    """
    names = items["image_id"].combine_chunks()
    staying = items.filter(pa.array(is_forced))
    rows = [
        {"image_id": name, "reason": STAYS + verdicts.stays[content].because}
        for name, content in zip(
            staying["image_id"].to_pylist(), staying["sha256"].to_pylist(), strict=True
        )
    ]
    goes, kept = (
        pc.index_in(keepers[name], value_set=names).to_numpy() for name in ("image_id", "keeper_id")
    )
    scene = said.scene_of[goes]
    is_near = within(keepers["distance"].to_numpy(), np.broadcast_to(eps, len(names))[goes])
    is_said = (scene >= 0) & (scene == said.scene_of[kept]) & ~is_near
    rows += [
        {"image_id": name, "reason": SAME_SCENE}
        for name in keepers.filter(pa.array(is_said))["image_id"].to_pylist()
    ]
    return pa.Table.from_pylist(rows, REASONS)


def heed(
    keeper_of: Items, labels: Labels, ranks: Ranks, features: Features, said: Said, *, eps: Eps
) -> Items:
    """Correct the keepers by what people said.

    What a person wants to keep stays; what is to be another's stead goes for it where it is within
    eps; of a scene only one item stays. An item whose keeper stands goes for it as before. One
    that has lost its keeper, or may not go for it, goes for the nearest kept item of its cluster
    within eps. Without such a one, it goes for the keeper of its scene, however far; and what is of
    no scene is covered anew, together with the others that are left.

    Args:
        keeper_of: `(N,)` the item of the same cluster that is kept for each, -1 for kept ones.
        labels: `(N,)` int32 clusters, -1 for noise, of which nothing is ever removed.
        ranks: `(N,)` int64, 0 for the best image.
        features: `(N, D)` float32 of unit length; may be a memory map.
        said: What people said.
        eps: Largest cosine distance of a twin, for all items or for each; equal within a cluster.

    Returns:
        `(N,)` int64 the new keepers. They are kept, in the same cluster, never the item itself, and
        within eps, except that of the same scene or that of `keeper_of`.
    """
    is_forced = rows_that_stay(keeper_of, labels, ranks, said)
    heeded = keeper_of.copy()
    eps_of_each = np.broadcast_to(eps, len(labels))
    for members in _touched_clusters(labels, said):
        largest = float(eps_of_each[members[0]])
        is_kept = (keeper_of[members] < 0) | is_forced[members]
        is_kept &= ~_goes_instead(members, is_kept, is_forced[members], features, said, eps=largest)
        is_kept &= ~_is_enough(members, is_kept, is_forced[members], ranks, said)
        kept = members[is_kept]
        heeded[kept] = -1
        goes = members[~is_kept]
        stands = np.isin(keeper_of[goes], kept)
        stands[stands] = said.may_go(goes[stands], keeper_of[goes[stands]])
        loose = goes[~stands]
        heeded[loose] = _find_keepers(loose, kept, ranks, features, said, eps=largest)
    return heeded


def rows_that_stay(keeper_of: Items, labels: Labels, ranks: Ranks, said: Said) -> Flags:
    """Choose the items that stay because a person said so: `(N,)`.

    Those that were meant; of a content that stays and has none of these in some cluster, one
    there: one that is kept anyhow, the best of equals.
    """
    in_cluster = labels >= 0
    is_forced: Flags = said.is_meant & in_cluster
    items = np.flatnonzero(said.stays & in_cluster)
    order = np.lexsort(
        (
            ranks[items],
            keeper_of[items] >= 0,
            ~said.is_meant[items],
            said.contents[items],
            labels[items],
        )
    )
    items = items[order]
    places = np.column_stack([labels[items], said.contents[items]])
    is_first = np.ones(len(items), np.bool_)
    is_first[1:] = (places[1:] != places[:-1]).any(axis=1)
    is_forced[items[is_first]] = True
    return is_forced


def _touched_clusters(labels: Labels, said: Said) -> Iterator[Items]:
    """The sorted items of every cluster that people said anything of."""
    order = np.argsort(labels, kind="stable")
    in_order = labels[order]
    for label in np.unique(labels[said.is_touched() & (labels >= 0)]).tolist():
        first, last = np.searchsorted(in_order, [label, label + 1])
        yield order[first:last]


def _goes_instead(
    members: Items,
    is_kept: Flags,
    is_forced: Flags,
    features: Features,
    said: Said,
    *,
    eps: float,
) -> Flags:
    """Tell which members are no longer kept, since another is that a person chose instead."""
    contents = said.contents[members]
    goes = np.zeros(len(members), np.bool_)
    for chosen, old in said.instead[np.isin(said.instead, contents).all(axis=1)]:
        winners = np.flatnonzero(is_forced & (contents == chosen))
        losers = np.flatnonzero(is_kept & ~is_forced & (contents == old))
        if len(winners) and len(losers):
            near = are_within(features[members[losers]], features[members[winners]], eps)
            goes[losers[near.any(axis=1)]] = True
    return goes


def _is_enough(members: Items, is_kept: Flags, is_forced: Flags, ranks: Ranks, said: Said) -> Flags:
    """Tell which members are no longer kept, since others of their scene are enough."""
    scene_of = said.scene_of[members]
    goes = np.zeros(len(members), np.bool_)
    for scene in np.unique(scene_of[is_kept & (scene_of >= 0)]):
        kept = np.flatnonzero(is_kept & (scene_of == scene))
        stays = kept[is_forced[kept]]
        if not len(stays):
            stays = kept[[ranks[members[kept]].argmin()]]
        goes[np.setdiff1d(kept, stays)] = True
    return goes


def _find_keepers(
    loose: Items, kept: Items, ranks: Ranks, features: Features, said: Said, *, eps: float
) -> Items:
    """Find a keeper for each of some items of one cluster, -1 where it has to stay."""
    found = _nearest(loose, kept, ranks, features, said, eps=eps)
    scene_of = said.scene_of[loose]
    alone = np.flatnonzero((found < 0) & (scene_of < 0))
    found[alone] = _cover_anew(loose[alone], ranks, features, said, eps=eps)
    kept = np.concatenate([kept, loose[alone[found[alone] < 0]]])
    rest = np.flatnonzero((found < 0) & (scene_of >= 0))
    found[rest] = _nearest(loose[rest], kept, ranks, features, said, eps=eps)
    for scene in np.unique(scene_of[(found < 0) & (scene_of >= 0)]):
        rest = np.flatnonzero((found < 0) & (scene_of == scene))
        keepers = kept[said.scene_of[kept] == scene]
        if not len(keepers):
            # All that were kept of it have gone for others: the best one that cannot stays.
            best = rest[ranks[loose[rest]].argmin()]
            keepers, rest = loose[[best]], rest[rest != best]
        found[rest] = _nearest(loose[rest], keepers, ranks, features, said, eps=_FARTHEST)
    return found


def _cover_anew(items: Items, ranks: Ranks, features: Features, said: Said, *, eps: float) -> Items:
    """Choose keepers among items that have none: `(n,)`, -1 for one that stays."""
    position = cover_keepers(features[items], np.zeros(len(items), np.int32), ranks[items], eps=eps)
    keeper_of = np.where(position >= 0, items[position], -1)
    goes = keeper_of >= 0
    # Who goes for one that it may not go for stays as well: nobody goes for it.
    keeper_of[goes] = np.where(said.may_go(items[goes], keeper_of[goes]), keeper_of[goes], -1)
    return keeper_of


def _nearest(
    items: Items, keepers: Items, ranks: Ranks, features: Features, said: Said, *, eps: float
) -> Items:
    """Find the nearest keeper that each item may go for: `(n,)`, -1 where there is none."""
    found = np.full(len(items), -1, np.int64)
    if not len(keepers):
        return found
    contents = said.contents[items]
    is_limited = said.stays[items] | np.isin(contents, said.apart)
    free = np.flatnonzero(~is_limited)
    groups = [free[start : start + ROWS_AT_ONCE] for start in range(0, len(free), ROWS_AT_ONCE)]
    groups += [
        np.flatnonzero(is_limited & (contents == content))
        for content in np.unique(contents[is_limited])
    ]
    for some in groups:
        alike = np.full(len(keepers), items[some[0]])
        allowed = keepers[said.may_go(alike, keepers)]
        if len(allowed):
            found[some] = nearest_keepers(features, items[some], allowed, ranks[allowed], eps=eps)
    return found


def _numbered(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each pair, whichever comes first."""
    return (np.minimum(a, b) << 32) | np.maximum(a, b)


def _pairs(pairs: tuple[tuple[str, str], ...], number_of: dict[str, int]) -> NDArray[np.int64]:
    numbers = [(number_of[a], number_of[b]) for a, b in pairs]
    return np.array(numbers, np.int64).reshape(-1, 2)
