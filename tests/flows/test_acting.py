"""Applying, undoing and purging: whole states before and after, on the local disk and on S3."""

import os
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config import ActingSettings, ApplyConfig
from flows.acting import apply_manifest, purge_quarantine, undo_apply
from tasks import storage
from tasks.acting_summary import ActingSummary
from tasks.apply03_lock_source import LOCK_NAME, lock_source
from tasks.approvals import record_decision
from tasks.errors import (
    ActionsFailedError,
    ApprovalError,
    ArtifactError,
    GuardError,
    LockHeldError,
    StorageError,
)
from tasks.journal import last_head
from tasks.manifests import read_manifest
from tasks.stores import store_of
from tests.written_nights import WrittenNight, write_night

GROUPS = {
    "cam 1/keeper.jpg": ["cam 1/a.jpg", "cam 1/b.jpg"],
    "cam 2/keeper.jpg": ["cam 2/a.jpg", 'cam 2/q"\n#%41.jpg'],
}
NOISE = ["cam 3/alone.jpg"]
ACTING = ActingSettings(workers=4, lock_seconds=10)


@pytest.fixture
def written(place: str) -> WrittenNight:
    return write_night(place, GROUPS, noise=NOISE)


def apply(night: WrittenNight, **settings: Any) -> ActingSummary:
    said = {"manifest_url": night.manifest_url, "execute": True, "acting": ACTING} | settings
    return apply_manifest(ApplyConfig.model_validate(said))


def undo(night: WrittenNight, summary: ActingSummary) -> ActingSummary:
    assert summary.apply_id is not None
    return undo_apply(summary.apply_id, night.workspace_url, ACTING)


def purge(night: WrittenNight, age: str = "0s", **settings: Any) -> ActingSummary:
    said = {"execute": True, "allow_orphans": False, "acting": ACTING} | settings
    return purge_quarantine(night.workspace_url, timedelta(seconds=-2), **said)


def tree(folder_url: str) -> dict[str, bytes]:
    """Every file of a folder with its content, by relative path."""
    if not storage.exists(folder_url):
        return {}
    return {
        file.relative_path: storage.read_bytes(file.url) for file in storage.list_files(folder_url)
    }


def contents(night: WrittenNight, paths: list[str]) -> dict[str, bytes]:
    return {path: night.contents[path] for path in paths}


def rewrite_file(url: str, content: bytes) -> None:
    """Put other content where a file is, as a camera or a person would."""
    storage.publish_bytes(url, content)


def remove_file(url: str) -> None:
    store = store_of(url)
    state = store.stat(url)
    assert state is not None
    assert store.discard(url, state)


def move_folder(url: str, to_url: str) -> None:
    """Move a folder as `mv` would, or as a tool for S3 would."""
    if url.startswith("file://"):
        Path(url.removeprefix("file://")).rename(to_url.removeprefix("file://"))
        return
    for path, content in tree(url).items():
        storage.publish_bytes(f"{to_url}/{path}", content)
        remove_file(f"{url}/{path}")


def problems(summary: ActingSummary) -> dict[str, str]:
    return {problem.url: problem.detail for problem in summary.problems}


def test_dry_run_changes_nothing_and_says_what_it_would_do(written: WrittenNight) -> None:
    before = tree(written.source_url), tree(written.workspace_url)
    summary = apply(written, execute=False)
    assert (tree(written.source_url), tree(written.workspace_url)) == before
    assert (summary.is_dry_run, summary.num_planned, summary.num_done) == (True, 4, 0)
    assert len(summary.first_rows) == 4
    assert [guard.rpartition(" ")[2] for guard in summary.guards] == ["(met)"] * 9


def test_delete_moves_into_quarantine_and_undo_puts_back(written: WrittenNight) -> None:
    before = tree(written.source_url)
    applied = apply(written)
    assert tree(written.source_url) == contents(written, written.kept())
    assert applied.to_folder is not None
    assert tree(applied.to_folder) == contents(written, written.removed())
    assert (applied.num_done, applied.num_problems) == (4, 0)
    assert applied.bytes_freed == sum(map(len, contents(written, written.removed()).values()))
    undone = undo(written, applied)
    assert (undone.num_done, undone.num_problems) == (4, 0)
    assert tree(written.source_url) == before
    assert tree(storage.join(written.workspace_url, "quarantine")) == {}


def test_undo_restores_times_on_a_disk(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    path = tmp_path / "source" / "cam 1" / "a.jpg"
    before = path.stat()
    undo(night, apply(night))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_what_is_done_is_not_done_again(written: WrittenNight) -> None:
    first = apply(written)
    journal = tree(str(first.journal_url))
    again = apply(written)
    assert again == first
    assert tree(str(first.journal_url)) == journal
    undo(written, first)
    journal = tree(str(first.journal_url))
    assert undo(written, first).num_done == 4
    assert tree(str(first.journal_url)) == journal


def test_journal_ends_with_what_was_done_and_left(written: WrittenNight) -> None:
    rewrite_file(written.url("cam 1/a.jpg"), b"another image")
    applied = apply(written)
    ended = last_head(str(applied.journal_url))
    assert ended is not None
    assert (ended.operation, ended.kind) == ("quarantine", "end")
    assert ended.details == {"done": "3", "left": "1"}
    undo(written, applied)
    ended = last_head(str(applied.journal_url))
    assert ended is not None
    assert (ended.operation, ended.details) == ("undo", {"done": "3", "left": "0"})
    assert last_head(storage.join(written.workspace_url, "no journal")) is None


def test_apply_after_undo_is_another_apply(written: WrittenNight) -> None:
    first = apply(written)
    undo(written, first)
    second = apply(written)
    assert (first.apply_id or "")[-2:] == "-1"
    assert (second.apply_id or "")[-2:] == "-2"
    assert second.num_done == 4
    assert undo(written, second).num_done == 4
    assert tree(written.source_url) == written.contents


def test_permanent_deletes_and_undo_says_that_it_cannot(written: WrittenNight) -> None:
    applied = apply(written, action="permanent")
    assert (applied.num_done, applied.num_problems) == (4, 0)
    assert tree(written.source_url) == contents(written, written.kept())
    assert tree(storage.join(written.workspace_url, "quarantine")) == {}
    undone = undo(written, applied)
    assert (undone.num_done, undone.num_problems) == (0, 4)


def test_permanent_after_quarantine_leaves_what_is_gone(written: WrittenNight) -> None:
    first = apply(written)
    again = apply(written, action="permanent")
    assert (again.num_done, again.num_skipped, again.num_problems) == (0, 4, 0)
    assert undo(written, first).num_done == 4


def test_copy_groups_by_cluster(written: WrittenNight, place: str) -> None:
    target = storage.join(place, "copies")
    applied = apply(written, action="copy", copy_to_url=target)
    expected = {
        "cluster-000000/cam 1/keeper.jpg": written.contents["cam 1/keeper.jpg"],
        "cluster-000000/cam 1/a.jpg": written.contents["cam 1/a.jpg"],
        "cluster-000000/cam 1/b.jpg": written.contents["cam 1/b.jpg"],
        "cluster-000001/cam 2/keeper.jpg": written.contents["cam 2/keeper.jpg"],
        "cluster-000001/cam 2/a.jpg": written.contents["cam 2/a.jpg"],
        'cluster-000001/cam 2/q"\n#%41.jpg': written.contents['cam 2/q"\n#%41.jpg'],
        "noise/cam 3/alone.jpg": written.contents["cam 3/alone.jpg"],
    }
    assert tree(target) == expected
    assert tree(written.source_url) == written.contents
    assert (applied.num_done, applied.bytes_freed) == (7, 0)
    again = apply(written, action="copy", copy_to_url=target)
    assert (again.num_done, again.num_skipped, again.num_problems) == (0, 7, 0)
    assert tree(target) == expected


@pytest.mark.parametrize(("source", "target"), [("local", "s3"), ("s3", "local"), ("s3", "s3")])
def test_copy_of_the_unique_images_between_stores(
    tmp_path: Path, s3_url: str, source: str, target: str
) -> None:
    places = {"local": str(tmp_path), "s3": f"{s3_url}/there"}
    night = write_night(places[source], GROUPS, noise=NOISE)
    copies = storage.join(places[target], "copies")
    apply(night, action="copy", copy_to_url=copies, only="keep")
    assert tree(copies) == contents(night, night.kept())


def test_copy_overwrites_nothing(written: WrittenNight, place: str) -> None:
    target = storage.absolute_url(storage.join(place, "copies"))
    taken = storage.join(target, "cam 3/alone.jpg")
    rewrite_file(taken, b"somebody else's")
    applied = apply(written, action="copy", copy_to_url=target, only="keep")
    assert problems(applied) == {
        written.url("cam 3/alone.jpg"): f"another file is there already: {taken}"
    }
    assert storage.read_bytes(taken) == b"somebody else's"
    assert applied.num_done == 2


def test_changed_image_stays(written: WrittenNight) -> None:
    url = written.url("cam 1/a.jpg")
    rewrite_file(url, b"something new")
    applied = apply(written)
    assert list(problems(applied)) == [url]
    assert problems(applied)[url].startswith("the image changed: 13 bytes")
    assert applied.num_done == 3
    assert storage.read_bytes(url) == b"something new"


def test_image_with_other_content_but_the_same_time_and_size_stays(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    path = tmp_path / "source" / "cam 1" / "a.jpg"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    applied = apply(night)
    assert list(problems(applied)) == [night.url("cam 1/a.jpg")]
    assert "another content" in problems(applied)[night.url("cam 1/a.jpg")]
    assert path.read_bytes() == b"x" * before.st_size


def test_images_whose_keeper_is_gone_stay(written: WrittenNight) -> None:
    keeper = written.url("cam 1/keeper.jpg")
    remove_file(keeper)
    applied = apply(written)
    assert problems(applied) == {
        written.url("cam 1/a.jpg"): f"its keeper is gone: {keeper}",
        written.url("cam 1/b.jpg"): f"its keeper is gone: {keeper}",
    }
    assert applied.num_done == 2


def test_images_whose_keeper_was_replaced_stay(written: WrittenNight) -> None:
    rewrite_file(written.url("cam 1/keeper.jpg"), b"another scene")
    applied = apply(written)
    assert list(problems(applied)) == [written.url("cam 1/a.jpg"), written.url("cam 1/b.jpg")]
    assert "its keeper changed" in problems(applied)[written.url("cam 1/a.jpg")]
    assert "cam 1/a.jpg" in tree(written.source_url)


def test_refused_images_are_tried_again_by_the_next_call(written: WrittenNight) -> None:
    keeper = written.url("cam 1/keeper.jpg")
    content = storage.read_bytes(keeper)
    # On a disk the time is a part of the version, so the file is moved away and back.
    aside = storage.join(written.workspace_url, "aside.jpg")
    state = store_of(keeper).stat(keeper)
    assert state is not None
    moved = store_of(keeper).move(keeper, aside, state)
    first = apply(written)
    assert (first.num_done, first.num_problems) == (2, 2)
    store_of(keeper).put_back(aside, keeper, moved)
    second = apply(written)
    assert second.apply_id == first.apply_id
    assert (second.num_done, second.num_problems) == (4, 0)
    assert storage.read_bytes(keeper) == content


def test_undo_does_not_overwrite_a_file_that_has_appeared(written: WrittenNight) -> None:
    applied = apply(written)
    url = written.url("cam 1/a.jpg")
    rewrite_file(url, b"appeared")
    undone = undo(written, applied)
    assert problems(undone) == {url: f"a file has appeared in its place: {url}"}
    assert undone.num_done == 3
    assert storage.read_bytes(url) == b"appeared"
    waiting = tree(str(applied.to_folder))
    assert waiting == contents(written, ["cam 1/a.jpg"])
    remove_file(url)
    assert undo(written, applied).num_problems == 0
    assert tree(written.source_url) == written.contents


def test_hard_links_and_links_stay(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    source = tmp_path / "source"
    (source / "cam 1" / "a.jpg").unlink()
    os.link(source / "cam 1" / "keeper.jpg", source / "cam 1" / "a.jpg")
    (source / "cam 2" / "a.jpg").rename(tmp_path / "elsewhere.jpg")
    (source / "cam 2" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    rows = [dict(row) for row in night.rows]
    (keeper,) = (row for row in rows if row["url"].endswith("cam 1/keeper.jpg"))
    for row in rows:
        if row["url"].endswith("cam 1/a.jpg"):
            row.update({name: keeper[name] for name in ("size_bytes", "etag", "sha256")})
    applied = apply(night.rewrite(rows))
    found = problems(applied)
    assert found[night.url("cam 1/a.jpg")] == ("the image and its keeper are two names of one file")
    assert "a link" in found[night.url("cam 2/a.jpg")]
    assert applied.num_done == 2
    assert (tmp_path / "elsewhere.jpg").exists()


def test_folder_that_became_a_link_is_not_entered(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    (tmp_path / "source" / "cam 1").rename(tmp_path / "outside")
    (tmp_path / "source" / "cam 1").symlink_to(tmp_path / "outside")
    applied = apply(night)
    assert sorted(problems(applied)) == [night.url("cam 1/a.jpg"), night.url("cam 1/b.jpg")]
    assert len(list((tmp_path / "outside").iterdir())) == 3


def test_purge_empties_the_quarantine_of_what_is_old(written: WrittenNight) -> None:
    applied = apply(written)
    young = purge_quarantine(
        written.workspace_url,
        timedelta(days=30),
        execute=True,
        allow_orphans=False,
        acting=ACTING,
    )
    assert young.num_planned == 0
    dry = purge(written, execute=False)
    assert (dry.is_dry_run, dry.num_planned) == (True, 4)
    assert len(tree(str(applied.to_folder))) == 4
    purged = purge(written)
    assert (purged.num_done, purged.num_problems) == (4, 0)
    assert purged.bytes_freed == applied.bytes_freed
    assert tree(str(applied.to_folder)) == {}
    assert tree(written.source_url) == contents(written, written.kept())
    assert purge(written).num_planned == 0
    undone = undo(written, applied)
    assert (undone.num_done, set(problems(undone).values())) == (
        0,
        {"purged, and so deleted for good"},
    )


def test_workspace_that_was_moved_undoes_purges_and_knows_what_is_gone(
    written: WrittenNight,
) -> None:
    applied = apply(written)
    moved_url = f"{written.workspace_url}-moved"
    move_folder(written.workspace_url, moved_url)
    moved = replace(
        written,
        workspace_url=moved_url,
        manifest_url=written.manifest_url.replace(written.workspace_url, moved_url),
    )
    assert (apply(moved).num_done, purge(moved, execute=False).num_planned) == (0, 4)
    undone = undo(moved, applied)
    assert (undone.num_done, undone.num_problems) == (4, 0)
    assert tree(written.source_url) == written.contents
    assert tree(f"{moved_url}/quarantine") == {}
    again = apply(moved)
    assert (again.num_done, purge(moved).num_done) == (4, 4)
    assert tree(written.source_url) == contents(written, written.kept())


def test_purge_keeps_what_has_no_living_keeper(written: WrittenNight) -> None:
    applied = apply(written)
    remove_file(written.url("cam 1/keeper.jpg"))
    purged = purge(written)
    assert (purged.num_done, purged.num_problems) == (2, 2)
    assert list(tree(str(applied.to_folder))) == ["cam 1/a.jpg", "cam 1/b.jpg"]
    assert purge(written, allow_orphans=True).num_done == 2


def test_second_apply_is_told_who_holds_the_lock(written: WrittenNight) -> None:
    before = tree(written.source_url)
    with (
        lock_source(
            written.source_url, (), purpose="test", expiry_seconds=60, allow_unlocked=False
        ),
        pytest.raises(LockHeldError, match=rf"process {os.getpid()} holds the lock .* for test"),
    ):
        apply(written)
    assert tree(written.source_url) == before


def test_of_two_applies_at_once_one_works(written: WrittenNight) -> None:
    outcomes: list[object] = []
    start = threading.Barrier(2)

    def act() -> None:
        start.wait()
        try:
            outcomes.append(apply(written).num_done)
        except LockHeldError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=act) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 4 in outcomes
    assert tree(written.source_url) == contents(written, written.kept())
    assert len(tree(storage.join(written.workspace_url, "quarantine"))) == 4


def test_lock_of_a_dead_holder_is_taken_over_after_its_expiry(written: WrittenNight) -> None:
    lock = storage.join(written.source_url, LOCK_NAME)
    record = (
        b'{"owner": "dead", "purpose": "x", "since": "2026-01-01", "expiry_seconds": 1.0,'
        b' "token": "t"}'
    )
    assert store_of(lock).create(lock, record)
    with pytest.raises(LockHeldError, match="dead holds the lock"):
        apply(written)
    while True:
        try:
            assert apply(written).num_done == 4
            break
        except LockHeldError:
            continue
    assert not storage.exists(lock)


@pytest.mark.parametrize(
    ("settings", "metadata", "setting"),
    [
        ({}, {"is_complete": "false"}, "--allow-partial"),
        ({"guards": {"max_removed_fraction": 0.5}}, {}, "--max-removed-fraction"),
        (
            {"guards": {"max_removed_fraction": 0.6}},
            {"config": '{"source": {"partition_by": "^([^/]+)/"}}'},
            "--max-removed-fraction",
        ),
        ({"guards": {"max_manifest_age": "0s"}}, {}, "--max-manifest-age"),
        ({}, {"eps": "0.01"}, "--allow-orphans"),
        ({"quarantine_url": "memory://elsewhere"}, {}, "--quarantine-to"),
    ],
)
def test_guard_names_the_setting_that_lets_it_pass(
    written: WrittenNight, settings: dict[str, Any], metadata: dict[str, str], setting: str
) -> None:
    night = written.rewrite(written.rows, **metadata)
    with pytest.raises(GuardError, match=setting):
        apply(night, **settings)
    assert tree(night.source_url) == night.contents
    assert setting in str(apply(night, execute=False, **settings).guards) or "NOT met" in str(
        apply(night, execute=False, **settings).guards
    )


def test_gated_images_stay_unless_that_is_allowed(written: WrittenNight) -> None:
    rows = [
        row | {"reason": "within eps, gated"} if row["action"] == "remove" else row
        for row in written.rows
    ]
    gated = written.rewrite(rows)
    with pytest.raises(GuardError, match="--allow-gated lets it pass"):
        apply(gated)
    assert tree(gated.source_url) == gated.contents
    assert apply(gated, guards={"allow_gated": True}).num_done == 4


@pytest.mark.parametrize(
    ("settings", "metadata"),
    [
        ({"guards": {"allow_partial": True}}, {"is_complete": "false"}),
        ({"guards": {"allow_orphans": True}}, {"eps": "0.01"}),
        ({"guards": {"max_removed_fraction": 0.67}}, {}),
    ],
)
def test_waived_guard_lets_it_pass(
    written: WrittenNight, settings: dict[str, Any], metadata: dict[str, str]
) -> None:
    assert apply(written.rewrite(written.rows, **metadata), **settings).num_done == 4


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"url": "file:///etc/passwd"}, "not inside the source"),
        ({"keeper_url": "file:///etc/passwd"}, "its keeper is not kept"),
        ({"keeper_url": None}, "its keeper is not kept"),
        ({"action": "destroy"}, "unknown action"),
        ({"action": "keep"}, "action keep with a keeper"),
        ({"distance": float("nan")}, "its distance to the keeper is nan"),
        ({"sha256": "abc"}, "no digest"),
    ],
)
def test_hostile_manifest_is_refused_whole(
    written: WrittenNight, change: dict[str, Any], complaint: str
) -> None:
    rows = [dict(row) for row in written.rows]
    next(row for row in rows if row["action"] == "remove").update(change)
    with pytest.raises(ArtifactError, match=complaint):
        apply(written.rewrite(rows))
    assert tree(written.source_url) == written.contents


def test_manifest_changed_by_hand_is_refused(written: WrittenNight) -> None:
    digest = read_manifest(written.manifest_url).digest
    rows = [row | {"etag": "other"} for row in written.rows]
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        apply(written.rewrite(rows, digest=digest))


def test_apply_waits_for_a_persons_approval(written: WrittenNight) -> None:
    with pytest.raises(ApprovalError, match="dedup approve night-0123456789abcdef"):
        apply(written, approval="required")
    manifest = read_manifest(written.manifest_url)
    record_decision(manifest, is_approved=False, by="Ada", comment="not tonight")
    with pytest.raises(ApprovalError, match="rejected by Ada: not tonight"):
        apply(written, approval="required")
    assert tree(written.source_url) == written.contents
    record_decision(manifest, is_approved=True, by="Ada", comment="")
    assert apply(written, approval="required").num_done == 4


def test_approval_holds_for_the_manifest_that_was_shown(written: WrittenNight) -> None:
    record_decision(read_manifest(written.manifest_url), is_approved=True, by="Ada", comment="")
    changed = written.rewrite([row | {"reason": "other"} for row in written.rows])
    with pytest.raises(ApprovalError, match="waits for a person"):
        apply(changed, approval="required")


def test_missing_source_is_one_clear_error(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    (tmp_path / "source").rename(tmp_path / "unmounted")
    with pytest.raises(StorageError, match="no such source"):
        apply(night)


def test_store_that_fails_for_a_whole_batch_stops_the_apply(
    written: WrittenNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.apply07_carry_out.RETRY_DELAYS_SECONDS", ())

    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(type(store_of(written.source_url)), "move", broken)
    with pytest.raises(ActionsFailedError, match=r"stopped after 4 of 4 images.*the disk is gone"):
        apply(written)
    monkeypatch.undo()
    assert apply(written).num_done == 4
