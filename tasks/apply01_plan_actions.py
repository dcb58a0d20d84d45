"""Apply, step 1: what a manifest asks for, image by image, before anything is looked at."""

from collections.abc import Iterator
from dataclasses import dataclass

from config import ApplyConfig, ApplySettings
from tasks import storage
from tasks.errors import ArtifactError, GuardError
from tasks.journal import Entry, ImageRecord, Journal, applies_url
from tasks.manifests import LoadedManifest, workspace_of
from tasks.paths import is_below, is_inside, is_plain, relative_to
from tasks.schemas import fingerprint
from tasks.stores import store_of


@dataclass(frozen=True)
class Places:
    """Where the images of a manifest, their journals and their new places are."""

    source_url: str
    journals_url: str
    """Folder of the journals of all applies of the run."""
    name: str
    """The apply's id without the number at its end; the same call gives the same name."""
    quarantine_url: str
    """Folder where the images of the run wait."""
    night_url: str
    """The workspace of the run, which its next night does not list."""
    copy_url: str | None

    def is_listed(self, url: str) -> bool:
        """Tell whether the next night would take files in a folder for images."""
        return is_below(url, self.source_url) and not is_below(url, self.night_url)

    @property
    def lock_url(self) -> str:
        """The folder that nobody else may act on: copying changes nothing in the source."""
        return self.copy_url or self.source_url

    def to_folder(self, apply_id: str) -> str:
        """Where the images or their copies go."""
        return self.copy_url or storage.join(self.quarantine_url, apply_id)


def places_of(manifest: LoadedManifest, config: ApplyConfig) -> Places:
    """Find the places of an apply.

    Raises:
        GuardError: The manifest lies in no workspace and none was named.
    """
    run_id = manifest.summary.run_id
    workspace_url = (
        workspace_of(manifest.url, run_id)
        if config.workspace_url is None
        else storage.absolute_url(config.workspace_url)
    )
    if workspace_url is None:
        raise GuardError(
            f"the manifest lies in no workspace, so name one with --workspace: {manifest.url}"
        )
    quarantine_url = storage.absolute_url(
        config.quarantine_url or storage.join(workspace_url, "quarantine")
    )
    copy_url = None if config.copy_to_url is None else storage.absolute_url(config.copy_to_url)
    asked = fingerprint(manifest.digest, config.only, copy_url, quarantine_url)
    return Places(
        source_url=manifest.summary.source_url,
        journals_url=applies_url(workspace_url, run_id),
        name=f"{run_id}-{config.action}-{asked[:8]}",
        quarantine_url=storage.join(quarantine_url, run_id),
        night_url=workspace_of(manifest.url, run_id) or workspace_url,
        copy_url=copy_url,
    )


def plan_actions(
    manifest: LoadedManifest, settings: ApplySettings, *, to_folder: str
) -> list[Entry]:
    """Say what is to happen to which image, in the order of the manifest.

    Args:
        manifest: The manifest.
        settings: What to do with it.
        to_folder: Where the images or their copies go, if they go anywhere.
    """
    plan = _copies if settings.action == "copy" else _removals
    return list(plan(manifest, settings, to_folder))


def copy_path(relative_path: str, cluster_id: int, *, is_grouped: bool) -> str | None:
    """Where a copy goes below the target.

    Args:
        relative_path: The image's path below its source.
        cluster_id: Its cluster, -1 for noise.
        is_grouped: One folder per cluster and one for noise, instead of none.

    Returns:
        None for a path that could lead out of the target.
    """
    if not is_plain(relative_path):
        return None
    if not is_grouped:
        return relative_path
    return f"{'noise' if cluster_id == -1 else f'cluster-{cluster_id:06d}'}/{relative_path}"


def waiting_url(url: str, action: str, source_url: str, to_folder: str) -> str | None:
    """Where an image to remove goes, if only for the moment in which it is deleted."""
    if action == "quarantine":
        return storage.join(to_folder, relative_to(url, source_url))
    return store_of(source_url).aside_url(url)


def removals_in_place(journal: Journal) -> list[Entry]:
    """The removals of a journal, whose images went where this version would have moved them.

    Raises:
        ArtifactError: The journal names any other place, so we have not written it.
    """
    source_url, to_folder = journal.detail("source_url"), journal.detail("to_folder")
    for operation in ("quarantine", "permanent"):
        for entry in journal.entries(operation):
            expected = waiting_url(entry.image.url, operation, source_url, to_folder)
            is_ours = is_inside(entry.image.url, source_url) and entry.to_url == expected
            is_named = operation == "permanent" or to_folder.endswith(f"/{journal.apply_id}")
            if not (is_ours and is_named):
                raise ArtifactError(
                    f"expected an image of {source_url} at {expected}, the journal names "
                    f"{entry.image.url} at {entry.to_url}: {journal.url}"
                )
    return journal.removals()


def _removals(manifest: LoadedManifest, settings: ApplySettings, to_folder: str) -> Iterator[Entry]:
    source_url = manifest.summary.source_url
    rows = manifest.table.to_pylist()
    image_of = {row["url"]: row for row in rows}
    for row in rows:
        if row["action"] != "remove":
            continue
        yield Entry(
            image=_record(row),
            to_url=waiting_url(row["url"], settings.action, source_url, to_folder),
            keeper=_record(image_of[row["keeper_url"]]),
            rule=f"{row['reason']}, distance {row['distance']:.6f}",
        )


def _copies(manifest: LoadedManifest, settings: ApplySettings, to_folder: str) -> Iterator[Entry]:
    is_grouped = settings.only == "all"
    for row in manifest.table.to_pylist():
        if row["action"] in ("skip", "library") or (not is_grouped and row["action"] != "keep"):
            continue
        path = copy_path(
            relative_to(row["url"], manifest.summary.source_url),
            row["cluster_id"],
            is_grouped=is_grouped,
        )
        yield Entry(
            image=_record(row),
            to_url=None if path is None else storage.join(to_folder, path),
            keeper=None,
            rule=row["reason"],
        )


def _record(row: dict[str, object]) -> ImageRecord:
    return ImageRecord.model_validate(
        {name: row[name] for name in ("url", "size_bytes", "etag", "sha256")}
    )
