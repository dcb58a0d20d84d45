"""Stage 0: whether other settings than before would make worthless what earlier nights have done.

How features were made is told by the feature files beside a library, and how a night was decided by
the manifest of the run that its segment names. Where these are gone, nobody can tell.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc
from pydantic import ValidationError

from config import DedupConfig
from tasks import storage
from tasks.errors import ArtifactError, ChangedSettingsError
from tasks.feature_store import differences_from
from tasks.library import (
    iterate_segments,
    latest,
    library_url,
    night_of,
    not_empty,
    segment_names,
)
from tasks.manifests import manifest_url_of
from tasks.references import Inventory, Library
from tasks.schemas import INVENTORY
from tasks.segments import look_at_segments
from tasks.stage import stage
from tasks.views import view_name

logger = logging.getLogger(__name__)

Said = dict[str, object]
"""Settings by their dotted names."""

Change = tuple[str, object, object]
"""Name of a setting, what it is and what it was."""

_MAX_NAMED = 8
_MAX_CHARACTERS = 60

_OF_VIEWS = ("view.", "cameras")
"""Settings that say in which view images are compared."""

_TOLD = (
    "--rebuild (in a profile rebuild: true) does it all the same, --no-library compares within the "
    "night alone"
)


@stage("check_settings")
def check_settings(config: DedupConfig) -> None:
    """Refuse to leave a library behind unless told to, before anything is written.

    Raises:
        ChangedSettingsError: The workspace has a library, and with these settings nothing would be
            compared with it.
    """
    workspace_url = storage.absolute_url(config.workspace_url)
    own_url = library_url(workspace_url, config.features)
    own_names = not_empty(latest(segment_names(own_url)))
    if own_names:
        log_changes(workspace_url, own_url, own_names[-1], config)
        return
    libraries = {
        url: not_empty(latest(segment_names(url)))
        for url in storage.list_names(storage.join(workspace_url, "library"))
    }
    largest = max(libraries, key=lambda url: (len(libraries[url]), url), default=own_url)
    names = libraries.get(largest, [])
    if names and not config.rebuild:
        store = storage.join(workspace_url, "features", largest.rpartition("/")[2])
        changes = "; ".join(differences_from(store, config.features))
        raise ChangedSettingsError(
            "the library of this workspace has other features "
            f"({changes or 'nobody knows which'}). None of its {count_images(largest, names):,} "
            f"images of {len(names):,} nights would be compared with, and every image would be "
            f"embedded anew. {_TOLD}; that library stays"
        )


@stage("check_night")
def check_night(inventory: Inventory, config: DedupConfig) -> None:
    """Refuse to decide a night otherwise than before unless told to.

    Raises:
        ChangedSettingsError: The library has what the night kept when it was decided with other
            settings, and later nights may have been compared with that; or it has cameras of the
            night in other views only.
    """
    workspace_url = storage.absolute_url(config.workspace_url)
    folder_url = library_url(workspace_url, config.features)
    names = not_empty(latest(segment_names(folder_url)))
    if not names or config.rebuild:
        return
    changes = changes_since(workspace_url, folder_url, names[-1], config)
    if any(name.startswith(_OF_VIEWS) for name, _, _ in changes):
        cameras = storage.read_table(inventory.url, INVENTORY, ["camera"])["camera"]
        check_views(Library(folder_url, tuple(names)), pc.unique(cameras).to_pylist(), config)
    mine = [name for name in names if night_of(name) == inventory.night_id]
    changes = changes_since(workspace_url, folder_url, mine[0], config) if mine else []
    if changes:
        num_later = sum(name > mine[0] for name in names)
        raise ChangedSettingsError(
            f"this night was decided before with other settings ({named(changes)}). What it kept "
            f"then, {count_images(folder_url, mine):,} images in the library, would be replaced by "
            f"what it keeps now; {num_later:,} nights have come after it. {_TOLD}"
        )


def check_views(library: Library, cameras: Sequence[str], config: DedupConfig) -> None:
    """Refuse to look at cameras in views that the library has nothing of, but has of others.

    Raises:
        ChangedSettingsError: Names some of them and counts the images that would not count.
    """
    counts: Counter[tuple[str, str | None]] = Counter()
    for rows in iterate_segments(library, ["camera", "view"]):
        columns = (rows[name].to_pylist() for name in ("camera", "view"))
        counts.update(zip(*columns, strict=True))
    kept: Counter[str] = Counter()
    for (camera, _), count in counts.items():
        kept[camera] += count
    left = [
        camera
        for camera in sorted(cameras)
        if kept[camera] and not counts[camera, view_name(config.of_partition(camera).view)]
    ]
    if left:
        shown = ", ".join(map(repr, left[:_MAX_NAMED])) + ", …" * (len(left) > _MAX_NAMED)
        raise ChangedSettingsError(
            f"{len(left):,} partitions are seen in another view than before: {shown}. None of the "
            f"{sum(kept[camera] for camera in left):,} images that the library has of them would "
            f"be compared with, and theirs would be embedded anew. {_TOLD}"
        )


def log_changes(workspace_url: str, folder_url: str, name: str, config: DedupConfig) -> None:
    """Say which settings are not those of the last night, where that invalidates nothing."""
    changes = changes_since(workspace_url, folder_url, name, config)
    if not changes:
        return
    logger.info(
        "other settings than those of the last night: %s; the library stays", named(changes)
    )
    if any(name == "source.partition_by" for name, _, _ in changes):
        logger.warning(
            "images that are in another partition than then are not compared with what earlier "
            "nights kept of them"
        )


def changes_since(
    workspace_url: str, folder_url: str, name: str, config: DedupConfig
) -> list[Change]:
    """Say which deciding settings a segment of the library was made with, and which are others now.

    Nothing where its run is gone: then nobody can tell.
    """
    (segment,) = look_at_segments(folder_url, [name])
    run_id = segment.metadata.get("run_id")
    try:
        before = storage.read_metadata(manifest_url_of(workspace_url, run_id)) if run_id else {}
    except ArtifactError:
        before = {}
    if "config" not in before:
        return []
    return differences(decided_by(before["config"]), dict(flat(config.deciding_settings())))


def count_images(folder_url: str, names: Sequence[str]) -> int:
    """Count the images in some segments of a library."""
    return sum(segment.num_rows for segment in look_at_segments(folder_url, names))


def decided_by(text: str) -> Said:
    """Read the settings in a manifest, with the defaults of those that were not known then."""
    said = json.loads(text)
    places = {"source_url": "nowhere", "workspace_url": "nowhere"}
    try:
        said = DedupConfig.model_validate(said | places).deciding_settings()
    except ValidationError:
        logger.debug("settings of another version: %s", said)
    return dict(flat(said))


def flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Settings by their dotted names."""
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def differences(before: Said, now: Said) -> list[Change]:
    """Names of the settings that differ, with what they are and what they were."""
    return [
        (name, now.get(name), before.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def named(changes: Sequence[Change]) -> str:
    """Say what differs, on one line."""
    shown = [f"{name} {_short(now)}, was {_short(old)}" for name, now, old in changes[:_MAX_NAMED]]
    more = f"; and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else ""
    return "; ".join(shown) + more


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
