"""Apply, step 2: what must hold before anything is touched."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from config import ApplySettings, parse_duration
from tasks.apply01_plan_actions import Places
from tasks.apply03_lock_source import holder_of
from tasks.errors import GuardError
from tasks.manifests import GATED, LoadedManifest, own_rows
from tasks.paths import partition_of, relative_to
from tasks.stores import Store
from tasks.verdicts import SAME_SCENE, Verdicts


@dataclass(frozen=True)
class Guard:
    """One thing that must hold."""

    name: str
    is_met: bool
    finding: str
    """What was found, as a clause."""
    setting: str
    """What would let it pass."""

    def __str__(self) -> str:
        return f"{self.name}: {self.finding} ({'met' if self.is_met else 'NOT met'})"


def guards_of(
    manifest: LoadedManifest,
    settings: ApplySettings,
    *,
    written_at: datetime,
    present: datetime,
) -> Iterator[Guard]:
    """Check everything that can be said from the manifest alone.

    Args:
        manifest: The manifest; reading it has checked digest, version and structure.
        settings: What is to be done, and what may be waived.
        written_at: When the manifest was written.
        present: The present time.
    """
    waived = settings.guards
    yield Guard(
        name="complete night",
        is_met=manifest.summary.is_complete or waived.allow_partial,
        finding="complete" if manifest.summary.is_complete else "some shards failed",
        setting="--allow-partial",
    )
    age, most = present - written_at, parse_duration(waived.max_manifest_age)
    yield Guard(
        name="age of the manifest",
        is_met=age <= most,
        finding=f"written {age.total_seconds() / 86_400:.1f} days ago, at most "
        f"{most.total_seconds() / 86_400:g}",
        setting="--max-manifest-age",
    )
    if settings.action == "copy":
        return
    num_orphans = count_orphans(manifest)
    yield Guard(
        name="twins",
        is_met=num_orphans == 0 or waived.allow_orphans,
        finding=f"{num_orphans:,} images to remove have a keeper farther away than eps",
        setting="--allow-orphans",
    )
    num_gated = count_gated(manifest)
    yield Guard(
        name="own features",
        is_met=num_gated == 0 or waived.allow_gated,
        finding=f"{num_gated:,} images to remove were judged by the frame they stand on",
        setting="--allow-gated",
    )
    shares = removed_fractions(manifest)
    worst = max(shares, key=lambda name: shares[name], default="")
    for name, share, where in (
        ("share removed", overall_fraction(manifest), "of the readable images"),
        ("share removed of a partition", shares.get(worst, 0.0), f"of partition {worst!r}"),
    ):
        yield Guard(
            name=name,
            is_met=share <= waived.max_removed_fraction,
            finding=f"{share:.2%} {where}, at most {waived.max_removed_fraction:.2%}",
            setting="--max-removed-fraction",
        )


def require_met(guards: Iterable[Guard]) -> None:
    """Refuse to act.

    Raises:
        GuardError: Names every guard that is not met, and the setting that would let it pass.
    """
    unmet = [
        f"{guard.name}: {guard.finding}; {guard.setting} lets it pass"
        for guard in guards
        if not guard.is_met
    ]
    if unmet:
        raise GuardError(f"nothing was done, because of: {'. '.join(unmet)}")


def quarantine_guard(places: Places, store: Store) -> Guard:
    """Check that images can be moved into quarantine, and are not listed again there."""
    quarantine_url, source_url = places.quarantine_url, places.source_url
    is_reachable = store.shares_moves_with(source_url, quarantine_url)
    is_listed = places.is_listed(quarantine_url)
    finding = "on the same store as the images"
    if not is_reachable:
        finding = f"{quarantine_url} is on another store than {source_url}"
    elif is_listed:
        finding = f"{quarantine_url} is inside the source, whose next night would list it"
    return Guard(
        name="quarantine",
        is_met=is_reachable and not is_listed,
        finding=finding,
        setting="--quarantine-to URL, or --permanent",
    )


def copies_guard(places: Places) -> Guard:
    """Check that copies are not listed again as images."""
    is_listed = places.copy_url is not None and places.is_listed(places.copy_url)
    return Guard(
        name="copies",
        is_met=not is_listed,
        finding=f"{places.copy_url} is inside the source, whose next night would list it"
        if is_listed
        else "outside the source",
        setting="--copy-to another URL",
    )


def reviews_guard(manifest: LoadedManifest, verdicts: Verdicts) -> Guard:
    """Check that what people have said by now is what the manifest heeds.

    Args:
        manifest: The manifest.
        verdicts: What all reviews of its workspace amount to.
    """
    is_image = pc.invert(pc.is_in(manifest.table["action"], pa.array(["skip", "library"])))
    readable = manifest.table.filter(is_image)
    contents = dict(zip(readable["url"].to_pylist(), readable["sha256"].to_pylist(), strict=True))
    now = verdicts.among(contents.items())
    scene_of = {content: number for number, group in enumerate(now.scenes) for content in group}
    goes = readable.filter(pc.equal(readable["reason"], SAME_SCENE))
    scenes = (
        [scene_of.get(contents[url]) for url in goes[name].to_pylist()]
        for name in ("url", "keeper_url")
    )
    num_unsaid = sum(a is None or a != b for a, b in zip(*scenes, strict=True))
    heeded = None if manifest.heeded is None else manifest.heeded.digest
    is_current = heeded == (now.digest if now else None)
    finding = f"{goes.num_rows:,} images to remove go beyond eps, as a person wants it"
    if num_unsaid:
        finding = f"{num_unsaid:,} images to remove go beyond eps as one scene, and nobody said so"
    if not is_current:
        finding = "people have said something else of these images than it heeds"
    return Guard(
        name="reviews",
        is_met=is_current and not num_unsaid,
        finding=finding,
        setting="a manifest made anew by dedup run or dedup review",
    )


def lock_guard(folder_url: str) -> Guard:
    """See whether somebody holds the lock right now; changes nothing."""
    holder = holder_of(folder_url)
    return Guard(
        name="lock",
        is_met=holder is None,
        finding=holder or "free",
        setting="waiting",
    )


def count_orphans(manifest: LoadedManifest) -> int:
    """Images to remove whose keeper is farther away than eps, and no person wants it so."""
    return manifest.summary.num_orphans


def count_gated(manifest: LoadedManifest) -> int:
    """Images to remove whose distance to the keeper is that of another frame."""
    return pc.sum(pc.equal(manifest.table["reason"], GATED)).as_py() or 0


def overall_fraction(manifest: LoadedManifest) -> float:
    """Share of the readable images that would be removed, in [0, 1]."""
    num_readable = manifest.summary.num_keep + manifest.summary.num_remove
    return manifest.summary.num_remove / num_readable if num_readable else 0.0


def removed_fractions(manifest: LoadedManifest) -> dict[str, float]:
    """Share of the readable images of each partition that would be removed, in [0, 1]."""
    readable: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    table = own_rows(manifest.table)
    rows = zip(table["url"].to_pylist(), table["action"].to_pylist(), strict=True)
    for url, action in rows:
        partition = partition_of(
            relative_to(url, manifest.summary.source_url), manifest.partition_by
        )
        readable[partition] += action != "skip"
        removed[partition] += action == "remove"
    return {name: removed[name] / count for name, count in readable.items() if count}
