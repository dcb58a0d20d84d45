"""Acting on a manifest, undoing it, emptying the quarantine.

Plain functions: what must work at three in the morning needs no Prefect server. The flow `apply`
wraps the first one for deployments.
"""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from config import ActingSettings, ApplyConfig
from tasks import storage
from tasks.acting_summary import ActingSummary, summarize_acting
from tasks.apply01_plan_actions import Places, places_of, plan_actions, removals_in_place
from tasks.apply02_check_guards import (
    Guard,
    copies_guard,
    guards_of,
    lock_guard,
    quarantine_guard,
    require_met,
    reviews_guard,
)
from tasks.apply03_lock_source import SourceLock, lock_source
from tasks.apply04_check_twin import TwinCheck, Verification
from tasks.apply05_remove_image import quarantine_image, remove_image
from tasks.apply06_copy_image import copy_image
from tasks.apply07_carry_out import Act, carry_out
from tasks.approvals import require_approval
from tasks.errors import LockHeldError
from tasks.journal import (
    Entry,
    Journal,
    Operation,
    Status,
    applies_url,
    current_journal,
    journal_url,
    list_applies,
    read_journal,
    removed_by_others,
)
from tasks.manifests import LoadedManifest, read_manifest
from tasks.paths import folders_between, parents_of
from tasks.purge_image import purge_image
from tasks.put_back_image import put_back_image
from tasks.stores import store_of
from tasks.verdicts import read_verdicts


def apply_manifest(config: ApplyConfig) -> ActingSummary:
    """Carry out a manifest, or say what would be done.

    A call that was killed is continued by the next one like it: what is done is not done again.

    Args:
        config: Which manifest, what to do, and what must hold before.

    Raises:
        GuardError: A guard is not met; nothing was touched.
        ApprovalError: A person has to agree and has not; nothing was touched.
        LockHeldError: Somebody else acts on the source; nothing was touched.
        ArtifactError: The manifest or the journal is damaged; nothing was touched.
        LockLostError: The lock could not be kept, so it stopped halfway.
        ActionsFailedError: The store failed, so it stopped halfway.
    """
    manifest = read_manifest(config.manifest_url)
    places = places_of(manifest, config)
    guards = check_guards(manifest, places, config)
    if not config.execute:
        journal = current_journal(places.journals_url, places.name)
        entries = plan_actions(manifest, config, to_folder=places.to_folder(journal.apply_id))
        guards.append(lock_guard(places.lock_url))
    else:
        require_met(guards)
        if config.approval == "required":
            require_approval(manifest)
        if places.copy_url is not None:
            storage.make_folder(places.copy_url)
        with lock(
            places.lock_url,
            manifest.table["url"].to_pylist() if config.action != "copy" else (),
            purpose=places.name,
            acting=config.acting,
            allow_unlocked=config.guards.allow_unlocked or config.action == "copy",
        ) as held:
            journal = current_journal(places.journals_url, places.name)
            entries = execute(manifest, places, journal, held, config)
    return summarize_acting(
        config.action,
        entries,
        journal.entries(config.action),
        apply_id=journal.apply_id,
        is_dry_run=not config.execute,
        source_url=places.source_url,
        manifest_url=manifest.url,
        to_folder=(places.to_folder(journal.apply_id) if config.action != "permanent" else None),
        journal_url=journal.url,
        guards=[str(guard) for guard in guards],
    )


def check_guards(manifest: LoadedManifest, places: Places, config: ApplyConfig) -> list[Guard]:
    """Check all that can be checked before the lock is taken."""
    guards = list(
        guards_of(
            manifest,
            config,
            written_at=storage.modified_at(manifest.url),
            present=datetime.now(UTC),
        )
    )
    if config.action == "quarantine":
        guards.append(quarantine_guard(places, store_of(places.source_url)))
    if config.action == "copy":
        guards.append(copies_guard(places))
    else:
        guards.append(reviews_guard(manifest, read_verdicts(places.night_url)))
    return guards


def execute(
    manifest: LoadedManifest,
    places: Places,
    journal: Journal,
    held: SourceLock,
    config: ApplyConfig,
) -> list[Entry]:
    """Do what the manifest asks for, as far as the journal does not say that it is done.

    Returns:
        All that the manifest asks for.
    """
    source, is_copy = store_of(places.source_url), config.action == "copy"
    verify = source.default_verification if config.verify == "auto" else config.verify
    is_content_read = verify == "content"
    check = TwinCheck(Verification(places.source_url, source, is_content_read))
    target = store_of(places.copy_url) if places.copy_url is not None else source
    others = {} if is_copy else removed_by_others(places.journals_url, journal.apply_id)

    def act(entry: Entry, is_in_doubt: bool) -> tuple[Status, str]:
        if entry.image.url in others and not is_in_doubt:
            return "already", f"removed by {others[entry.image.url]}"
        if is_copy:
            return copy_image(entry, check, source, target)
        remove = quarantine_image if config.action == "quarantine" else remove_image
        return remove(entry, check, source, is_in_doubt=is_in_doubt)

    def is_settled(entry: Entry) -> bool:
        last = journal.last(entry.image.url, config.action)
        is_still_gone = last is not None and last.status == "already" and entry.image.url in others
        return not is_copy and last is not None and (last.status == "done" or is_still_gone)

    to_folder = places.to_folder(journal.apply_id)
    entries = plan_actions(manifest, config, to_folder=to_folder)
    if not journal.heads:
        journal.append(
            config.action,
            "begin",
            details={
                "manifest_url": manifest.url,
                "manifest_digest": manifest.digest,
                "source_url": places.source_url,
                "to_folder": to_folder,
                "is_content_read": str(is_content_read),
                "settings": config.model_dump_json(),
            },
        )
    carry_out_to_end(
        config.action,
        [entry for entry in entries if not is_settled(entry)],
        act,
        journal,
        held,
        config.acting,
        tried={entry.image.url for entry in journal.entries(config.action)},
    )
    return entries


def undo_apply(apply_id: str, workspace_url: str, acting: ActingSettings) -> ActingSummary:
    """Put back everything that an apply has moved away, as far as it still can be.

    Args:
        apply_id: As the apply printed it.
        workspace_url: The workspace that its journal lies in.
        acting: How many at a time.

    Raises:
        ArtifactError: There is no such apply, or its journal is damaged.
        LockHeldError: Somebody else acts on the source; nothing was touched.
        LockLostError: The lock could not be kept, so it stopped halfway.
        ActionsFailedError: The store failed, so it stopped halfway.
    """
    url = journal_url(storage.absolute_url(workspace_url), apply_id)
    journal = read_journal(url, apply_id)
    source_url, to_folder = journal.detail("source_url"), journal.detail("to_folder")
    with lock(
        source_url,
        [entry.image.url for entry in journal.removals()],
        purpose=f"undo of {apply_id}",
        acting=acting,
        allow_unlocked=True,
    ) as held:
        journal = read_journal(url, apply_id)
        check, store = check_of(journal), store_of(source_url)
        away = [
            entry
            for entry in removals_in_place(journal)
            if entry.status in ("done", "failed", None) and not journal.is_back(entry.image.url)
        ]
        halfway = {
            entry.image.url
            for entry in away
            if entry.status != "done" or journal.last(entry.image.url, "undo") is not None
        }

        def act(entry: Entry, is_in_doubt: bool) -> tuple[Status, str]:
            is_purged = journal.is_purged(entry.image.url)
            return put_back_image(entry, check, store, is_in_doubt=is_in_doubt, is_purged=is_purged)

        carry_out_to_end("undo", away, act, journal, held, acting, tried=halfway)
        if journal.has_begun("quarantine"):
            store.prune(to_folder.rpartition("/")[0])
    return summarize_acting(
        "undo",
        journal.entries("undo"),
        journal.entries("undo"),
        apply_id=apply_id,
        source_url=source_url,
        manifest_url=journal.detail("manifest_url"),
        journal_url=journal.url,
    )


def purge_quarantine(
    workspace_url: str,
    older_than: timedelta,
    *,
    execute: bool,
    allow_orphans: bool,
    acting: ActingSettings,
) -> ActingSummary:
    """Delete for good what has been in quarantine for long, if its keeper still lives.

    Args:
        workspace_url: The workspace whose applies are looked through.
        older_than: What was moved there later stays.
        execute: False says what would be deleted and changes nothing.
        allow_orphans: Delete also what has no living keeper any more.
        acting: How many at a time.

    Raises:
        ArtifactError: A journal is damaged.
        LockHeldError: Somebody else acts on a source; the others were dealt with.
        LockLostError: A lock could not be kept, so it stopped halfway.
        ActionsFailedError: The store failed, so it stopped halfway.
    """
    before = datetime.now(UTC) - older_than
    planned: list[Entry] = []
    outcomes: list[Entry] = []
    held_by: list[str] = []
    for journal in quarantines(storage.absolute_url(workspace_url)):
        waiting = waiting_images(journal, before)
        planned += waiting
        if not execute or not waiting:
            continue
        try:
            outcomes += purge_apply(journal, before, allow_orphans=allow_orphans, acting=acting)
        except LockHeldError as error:
            held_by.append(str(error))
    if held_by:
        raise LockHeldError("; ".join(held_by))
    return summarize_acting("purge", planned, outcomes, is_dry_run=not execute)


def purge_apply(
    journal: Journal, before: datetime, *, allow_orphans: bool, acting: ActingSettings
) -> list[Entry]:
    """Delete for good what an apply has moved into quarantine before some time."""
    source_url, to_folder = journal.detail("source_url"), journal.detail("to_folder")
    with lock(
        source_url,
        [entry.image.url for entry in journal.removals()],
        purpose=f"purge of {journal.apply_id}",
        acting=acting,
        allow_unlocked=True,
    ) as held:
        journal = read_journal(journal.url, journal.apply_id)
        check, store = check_of(journal), store_of(source_url)

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            return purge_image(entry, check, store, allow_orphans=allow_orphans)

        waiting = waiting_images(journal, before)
        carry_out_to_end("purge", waiting, act, journal, held, acting)
        store.prune(to_folder.rpartition("/")[0])
    urls = {entry.image.url for entry in waiting}
    return [entry for entry in journal.entries("purge") if entry.image.url in urls]


def quarantines(workspace_url: str) -> Iterable[Journal]:
    """The journals of all applies of a workspace that have moved images into quarantine."""
    for run_url in storage.list_names(storage.join(workspace_url, "runs")):
        folder = applies_url(workspace_url, run_url.rstrip("/").rpartition("/")[2])
        for apply_id in list_applies(folder):
            journal = read_journal(storage.join(folder, apply_id), apply_id)
            if journal.has_begun("quarantine"):
                yield journal


def waiting_images(journal: Journal, before: datetime) -> list[Entry]:
    """The images that an apply has moved into quarantine before some time, and that wait there."""
    return [
        entry
        for entry in removals_in_place(journal)
        if entry.status == "done"
        and entry.at is not None
        and entry.at < before
        and not journal.is_back(entry.image.url)
        and not journal.is_purged(entry.image.url)
        and not journal.is_in_doubt(entry.image.url, "undo")
    ]


def check_of(journal: Journal) -> TwinCheck:
    """Look at images as the apply did that a journal is about."""
    source_url = journal.detail("source_url")
    is_content_read = journal.detail("is_content_read") == str(True)
    return TwinCheck(Verification(source_url, store_of(source_url), is_content_read))


def carry_out_to_end(
    operation: Operation,
    entries: list[Entry],
    act: Act,
    journal: Journal,
    held: SourceLock,
    acting: ActingSettings,
    tried: Collection[str] = (),
) -> None:
    """Act on images and note that nothing is left; without images, nothing is written again."""
    carry_out(
        entries,
        act,
        operation=operation,
        journal=journal,
        lock=held,
        settings=acting,
        tried=tried,
    )
    if entries or not journal.has_ended(operation):
        journal.append(operation, "end", details=journal.counts_of(operation))


def lock(
    folder_url: str,
    image_urls: Iterable[str],
    *,
    purpose: str,
    acting: ActingSettings,
    allow_unlocked: bool,
) -> AbstractContextManager[SourceLock]:
    """Hold the lock of a folder, and make sure that nobody holds one above it or in it."""
    inside = {folder for url in image_urls for folder in folders_between(url, folder_url)}
    return lock_source(
        folder_url,
        [*parents_of(folder_url), *sorted(inside)],
        purpose=purpose,
        expiry_seconds=acting.lock_seconds,
        allow_unlocked=allow_unlocked,
    )
