"""Stage 0: whether other settings than before would make worthless what earlier nights have done.

What the settings were is told by the runs: a segment of the library names its run, and the manifest
of that says how it was decided. Where that manifest is gone, nobody can tell.
"""

import json
import logging
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from config import DedupConfig
from tasks import storage
from tasks.errors import ArtifactError, ChangedSettingsError
from tasks.library import latest, library_url, night_of, not_empty, segment_names
from tasks.manifests import manifest_url_of
from tasks.references import Inventory
from tasks.schemas import SCHEMA_VERSION
from tasks.segments import look_at_segments
from tasks.stage import stage
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)

Said = dict[str, object]
"""Settings by their dotted names."""

_MAX_NAMED = 8
_MAX_CHARACTERS = 60

_SEPARATING = ("source.partition_by", "view.", "cameras")
"""Settings that say which images are compared at all, and in which view."""

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
        before = decision_about(workspace_url, largest, names[-1])
        changes = differences(features_by(before), features_by(of_config(config)))
        raise ChangedSettingsError(
            "the library of this workspace was made with "
            f"{named(changes) if before else 'settings that its runs no longer tell'}. "
            f"None of its {count_images(largest, names):,} images of {len(names):,} nights would "
            f"be compared with, and every image would be embedded anew. {_TOLD}; that library stays"
        )


@stage("check_night")
def check_night(inventory: Inventory, config: DedupConfig) -> None:
    """Refuse to decide a night otherwise than before unless told to.

    Raises:
        ChangedSettingsError: The library has what the night kept when it was decided with other
            settings, and later nights may have been compared with that.
    """
    workspace_url = storage.absolute_url(config.workspace_url)
    folder_url = library_url(workspace_url, config.features)
    names = not_empty(latest(segment_names(folder_url)))
    mine = [name for name in names if night_of(name) == inventory.night_id]
    if not mine or config.rebuild:
        return
    before = decision_about(workspace_url, folder_url, mine[0])
    changes = differences(decided_by(before), decided_by(of_config(config)))
    if before and changes:
        num_later = sum(name > mine[0] for name in names)
        raise ChangedSettingsError(
            f"this night was decided before with {named(changes)}. What it kept then, "
            f"{count_images(folder_url, mine):,} images in the library, would be replaced by what "
            f"it keeps now; {num_later:,} nights have come after it. {_TOLD}"
        )


def log_changes(workspace_url: str, folder_url: str, name: str, config: DedupConfig) -> None:
    """Say which settings are not those of the last night, where that invalidates nothing."""
    before = decision_about(workspace_url, folder_url, name)
    changes = differences(decided_by(before), decided_by(of_config(config)))
    if not before or not changes:
        return
    logger.info(
        "the last night in the library was decided with %s; the library stays", named(changes)
    )
    if any(name.startswith(_SEPARATING) for name, _, _ in changes):
        logger.warning(
            "images that are in another partition or seen in another view than then are not "
            "compared with what earlier nights kept of them"
        )


def decision_about(workspace_url: str, folder_url: str, name: str) -> dict[str, str]:
    """What the manifest behind a segment of the library says of itself; empty when it is gone."""
    (segment,) = look_at_segments(folder_url, [name])
    run_id = segment.metadata.get("run_id")
    if run_id is None:
        return {}
    try:
        said = storage.read_metadata(manifest_url_of(workspace_url, run_id))
    except ArtifactError:
        return {}
    # A manifest has a version of its own.
    return said | {"schema_version": segment.metadata["schema_version"]}


def count_images(folder_url: str, names: Sequence[str]) -> int:
    """Count the images in some segments of a library."""
    return sum(segment.num_rows for segment in look_at_segments(folder_url, names))


def of_config(config: DedupConfig) -> dict[str, str]:
    """The same of a run to come, as far as it is known."""
    return {
        "config": json.dumps(config.deciding_settings()),
        "weights_digest": WEIGHTS_DIGEST,
        "schema_version": str(SCHEMA_VERSION),
    }


def decided_by(metadata: Mapping[str, str]) -> Said:
    """The settings that decided, with the defaults of those that were not known then."""
    said = json.loads(metadata.get("config", "{}"))
    places = {"source_url": "nowhere", "workspace_url": "nowhere"}
    try:
        said = DedupConfig.model_validate(said | places).deciding_settings()
    except ValidationError:
        logger.debug("settings of another version: %s", said)
    return dict(flat(said))


def features_by(metadata: Mapping[str, str]) -> Said:
    """Everything that a feature depends on and that has a name."""
    settings = {
        name: value for name, value in decided_by(metadata).items() if name.startswith("features.")
    }
    if settings.get("features.pooling") != "gem":
        settings.pop("features.gem_p", None)
    return settings | {name: metadata.get(name) for name in ("weights_digest", "schema_version")}


def flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Settings by their dotted names."""
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def differences(before: Said, now: Said) -> list[tuple[str, object, object]]:
    """Names of the settings that differ, with what they were and what they are."""
    return [
        (name, before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def named(changes: Sequence[tuple[str, object, object]]) -> str:
    """Say what differs, on one line."""
    if not changes:
        return "another version of the code that computes features"
    shown = [f"{name} {_short(old)}, now {_short(new)}" for name, old, new in changes[:_MAX_NAMED]]
    more = f"; and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else ""
    return "; ".join(shown) + more


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
