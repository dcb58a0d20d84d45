"""What a manifest asks for, image by image."""

import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ApplyConfig, ApplySettings
from tasks import storage
from tasks.apply01_plan_actions import (
    Places,
    copy_path,
    places_of,
    plan_actions,
    removals_in_place,
    waiting_url,
)
from tasks.errors import ArtifactError, GuardError
from tasks.journal import Entry, ImageRecord, Journal
from tasks.manifests import read_manifest
from tests.written_nights import WrittenNight, write_night

RUN = "night-0123456789abcdef"


@pytest.fixture
def night(tmp_path: Path) -> WrittenNight:
    """Two clusters, of three and of two images, one image like no other, and one unreadable."""
    written = write_night(
        str(tmp_path), {"c1/k.jpg": ["c1/a.jpg", "c2/b.jpg"], "k.jpg": ["l.jpg"]}, noise=["n.jpg"]
    )
    (tmp_path / "source/s.jpg").touch()
    skipped = written.rows[0] | {
        "url": written.url("s.jpg"),
        "size_bytes": 0,
        "sha256": None,
        "cluster_id": -1,
        "action": "skip",
        "keeper_url": None,
        "distance": None,
        "reason": "unreadable: empty file",
    }
    return written.rewrite([*written.rows, skipped])


@pytest.fixture
def places(night: WrittenNight) -> Callable[..., Places]:
    def find(**settings: Any) -> Places:
        config = ApplyConfig(manifest_url=night.manifest_url, **settings)
        return places_of(read_manifest(night.manifest_url), config)

    return find


def plan(night: WrittenNight, **settings: Any) -> list[Entry]:
    return plan_actions(
        read_manifest(night.manifest_url), ApplySettings(**settings), to_folder="file:///to"
    )


class TestPlaces:
    def test_are_in_the_workspace_of_the_manifest(
        self, night: WrittenNight, places: Callable[..., Places]
    ) -> None:
        found = places()
        workspace = night.workspace_url
        assert found.source_url == found.lock_url == night.source_url
        assert found.night_url == workspace
        assert found.journals_url == f"{workspace}/runs/{RUN}/applies"
        assert found.quarantine_url == f"{workspace}/quarantine/{RUN}"
        assert found.copy_url is None
        assert found.to_folder("apply-1") == f"{workspace}/quarantine/{RUN}/apply-1"

    def test_workspace_can_be_named(self, tmp_path: Path, places: Callable[..., Places]) -> None:
        night = places().night_url
        found = places(workspace_url=f"{tmp_path}/other/")
        other = storage.absolute_url(f"{tmp_path}/other")
        assert found.night_url == night
        assert found.journals_url == f"{other}/runs/{RUN}/applies"
        assert found.quarantine_url == f"{other}/quarantine/{RUN}"

    def test_manifest_elsewhere_needs_a_named_workspace(
        self, tmp_path: Path, night: WrittenNight
    ) -> None:
        url = f"{tmp_path}/moved.parquet"
        storage.publish_bytes(url, storage.read_bytes(night.manifest_url))
        manifest = read_manifest(url)
        with pytest.raises(GuardError) as refusal:
            places_of(manifest, ApplyConfig(manifest_url=url))
        assert str(refusal.value) == (
            f"the manifest lies in no workspace, so name one with --workspace: {manifest.url}"
        )
        named = ApplyConfig(manifest_url=url, workspace_url=night.workspace_url)
        assert places_of(manifest, named).night_url == night.workspace_url

    def test_quarantine_can_be_elsewhere(
        self, tmp_path: Path, places: Callable[..., Places]
    ) -> None:
        found = places(quarantine_url=f"{tmp_path}/q/")
        quarantine = storage.absolute_url(f"{tmp_path}/q")
        assert found.quarantine_url == f"{quarantine}/{RUN}"
        assert found.to_folder("apply-1") == f"{quarantine}/{RUN}/apply-1"

    def test_copying_locks_its_target_and_not_the_source(
        self, tmp_path: Path, places: Callable[..., Places]
    ) -> None:
        found = places(action="copy", copy_to_url=f"{tmp_path}/copies/")
        copies = storage.absolute_url(f"{tmp_path}/copies")
        assert (found.copy_url, found.lock_url, found.to_folder("apply-1")) == (copies,) * 3

    def test_name_says_run_and_action(self, places: Callable[..., Places]) -> None:
        assert places().name.startswith(f"{RUN}-quarantine-")
        assert places(action="permanent").name.startswith(f"{RUN}-permanent-")

    def test_same_call_has_the_same_name(self, places: Callable[..., Places]) -> None:
        # How it is carried out and what is waived makes no other apply: it goes on with the first.
        assert (
            places().name
            == places(execute=True, verify="content", acting={"workers": 1}).name
            == places(guards={"allow_orphans": True}).name
        )

    def test_another_call_has_another_name(
        self, night: WrittenNight, places: Callable[..., Places]
    ) -> None:
        names = [
            places().name,
            places(quarantine_url="/q").name,
            places(action="permanent").name,
            places(action="copy", copy_to_url="/c").name,
            places(action="copy", copy_to_url="/d").name,
            places(action="copy", copy_to_url="/c", only="keep").name,
        ]
        night.rewrite(night.rows[:-1])
        names.append(places().name)
        assert len(set(names)) == 7

    @pytest.mark.parametrize(
        "settings",
        [{"quarantine_url": "{}"}, {"action": "copy", "copy_to_url": "{}"}],
    )
    def test_name_stands_for_one_place_whatever_the_working_folder(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        places: Callable[..., Places],
        settings: dict[str, str],
    ) -> None:
        found = []
        for folder, spelling in (("a", "x"), ("a", f"{tmp_path}/a/x"), ("b", "x")):
            (tmp_path / folder).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / folder)
            found.append(places(**{name: text.format(spelling) for name, text in settings.items()}))
        here, same, elsewhere = found
        assert here == same
        assert here.to_folder("1") != elsewhere.to_folder("1")
        # Else the second call goes on with the journal of the first, which names other places.
        assert here.name != elsewhere.name


class TestPlan:
    def test_quarantine_moves_what_is_to_be_removed(self, night: WrittenNight) -> None:
        entries = plan(night)
        assert [(entry.image.url, entry.to_url) for entry in entries] == [
            (night.url("c1/a.jpg"), "file:///to/c1/a.jpg"),
            (night.url("c2/b.jpg"), "file:///to/c2/b.jpg"),
            (night.url("l.jpg"), "file:///to/l.jpg"),
        ]
        assert [entry.keeper.url for entry in entries if entry.keeper] == [
            night.url("c1/k.jpg"),
            night.url("c1/k.jpg"),
            night.url("k.jpg"),
        ]
        assert {entry.rule for entry in entries} == {"within eps, distance 0.031250"}
        assert {(entry.status, entry.detail, entry.at) for entry in entries} == {(None, "", None)}

    def test_entry_has_what_the_manifest_saw_of_image_and_keeper(self, night: WrittenNight) -> None:
        entry = plan(night)[0]
        by_url = {row["url"]: row for row in night.rows}
        for record in (entry.image, entry.keeper):
            assert record is not None
            row = by_url[record.url]
            assert record == ImageRecord(
                url=row["url"],
                size_bytes=row["size_bytes"],
                etag=row["etag"],
                sha256=row["sha256"],
            )

    def test_permanent_takes_the_same_images_aside(self, night: WrittenNight) -> None:
        entries, moved = plan(night, action="permanent"), plan(night)
        assert [(e.image, e.keeper, e.rule) for e in entries] == [
            (e.image, e.keeper, e.rule) for e in moved
        ]
        folders = [str(entry.to_url).rpartition("/")[0] for entry in entries]
        assert folders == [night.url("c1"), night.url("c2"), night.source_url]
        for entry in entries:
            name = str(entry.to_url).rpartition("/")[2]
            assert name.startswith(".image-dedup.removing-")

    def test_copy_takes_all_readable_images_one_folder_per_cluster(
        self, night: WrittenNight
    ) -> None:
        entries = plan(night, action="copy", copy_to_url="/to")
        assert [(entry.image.url, entry.to_url, entry.rule) for entry in entries] == [
            (night.url(path), f"file:///to/{folder}/{path}", rule)
            for path, folder, rule in [
                ("c1/a.jpg", "cluster-000000", "within eps"),
                ("c1/k.jpg", "cluster-000000", "keeper"),
                ("c2/b.jpg", "cluster-000000", "within eps"),
                ("k.jpg", "cluster-000001", "keeper"),
                ("l.jpg", "cluster-000001", "within eps"),
                ("n.jpg", "noise", "keeper"),
            ]
        ]
        assert {entry.keeper for entry in entries} == {None}

    def test_copy_of_what_is_kept_has_no_folders(self, night: WrittenNight) -> None:
        entries = plan(night, action="copy", copy_to_url="/to", only="keep")
        assert [(entry.image.url, entry.to_url) for entry in entries] == [
            (night.url(path), f"file:///to/{path}") for path in ("c1/k.jpg", "k.jpg", "n.jpg")
        ]

    def test_keeper_of_an_earlier_night_is_looked_after_and_never_copied(
        self, night: WrittenNight
    ) -> None:
        earlier = night.rows[0] | {
            "url": "file:///elsewhere/old.jpg",
            "action": "library",
            "keeper_url": None,
            "distance": None,
            "reason": "kept by an earlier night",
        }
        rows = [
            row | {"keeper_url": earlier["url"]} if row["action"] == "remove" else row
            for row in night.rows
        ]
        later = night.rewrite([*rows, earlier])

        assert {entry.keeper.url for entry in plan(later) if entry.keeper} == {earlier["url"]}
        for only in ("all", "keep"):
            copied = plan(later, action="copy", copy_to_url="/to", only=only)
            assert earlier["url"] not in {entry.image.url for entry in copied}

    def test_copy_of_a_path_that_leads_elsewhere_has_no_place(self, night: WrittenNight) -> None:
        rows = [row | {"url": row["url"].replace("n.jpg", "./n.jpg")} for row in night.rows]
        entries = plan(night.rewrite(rows), action="copy", copy_to_url="/to")
        assert [entry.image.url for entry in entries if entry.to_url is None] == [
            night.url("./n.jpg")
        ]

    @pytest.mark.parametrize(
        "settings", [{}, {"action": "permanent"}, {"action": "copy", "copy_to_url": "/to"}]
    )
    def test_empty_night_asks_for_nothing(
        self, night: WrittenNight, settings: dict[str, str]
    ) -> None:
        assert plan(night.rewrite([]), **settings) == []


class TestCopyPath:
    @pytest.mark.parametrize(
        ("cluster_id", "path"),
        [
            (-1, "noise/a/b.jpg"),
            (0, "cluster-000000/a/b.jpg"),
            (999_999, "cluster-999999/a/b.jpg"),
            (1_000_000, "cluster-1000000/a/b.jpg"),
        ],
    )
    def test_has_a_folder_for_its_cluster(self, cluster_id: int, path: str) -> None:
        assert copy_path("a/b.jpg", cluster_id, is_grouped=True) == path
        assert copy_path("a/b.jpg", cluster_id, is_grouped=False) == "a/b.jpg"

    @pytest.mark.parametrize(
        "path", ["", "/a.jpg", "../a.jpg", "a/../../b.jpg", "a//b.jpg", "./a.jpg", "a/", "a\0b"]
    )
    @pytest.mark.parametrize("is_grouped", [True, False])
    def test_that_is_not_plain_is_none(self, path: str, is_grouped: bool) -> None:
        assert copy_path(path, 0, is_grouped=is_grouped) is None

    @given(
        st.lists(st.sampled_from(["..", ".", "", "a", "..a", "...", "b.jpg", "\0", "é", "\n"])),
        st.integers(-1, 2**31 - 1),
        st.booleans(),
    )
    def test_never_leads_out_of_the_target(
        self, parts: list[str], cluster_id: int, is_grouped: bool
    ) -> None:
        path = copy_path("/".join(parts), cluster_id, is_grouped=is_grouped)
        if path is not None:
            assert posixpath.normpath(posixpath.join("/to", path)) == f"/to/{path}"


def test_image_of_s3_waits_nowhere_while_it_is_deleted() -> None:
    url = "s3://bucket/night/a.jpg"
    assert waiting_url(url, "permanent", "s3://bucket/night", "s3://bucket/q") is None
    assert waiting_url(url, "quarantine", "s3://bucket/night", "s3://bucket/q") == (
        "s3://bucket/q/a.jpg"
    )


class TestRemovalsInPlace:
    """Undo and purge believe no place that we would not have chosen ourselves."""

    APPLY_ID = f"{RUN}-quarantine-01234567-1"

    def journal(
        self,
        tmp_path: Path,
        night: WrittenNight,
        change: Callable[[Entry], Entry] = lambda entry: entry,
        *,
        action: str = "quarantine",
        to_folder: str = f"file:///q/{APPLY_ID}",
    ) -> Journal:
        journal = Journal(storage.absolute_url(str(tmp_path / "journal")), self.APPLY_ID)
        details = {"source_url": night.source_url, "to_folder": to_folder}
        entries = plan_actions(
            read_manifest(night.manifest_url), ApplySettings(action=action), to_folder=to_folder
        )
        journal.append(action, "begin", details=details)  # type: ignore[arg-type]
        journal.append(action, "intents", map(change, entries))  # type: ignore[arg-type]
        return journal

    @pytest.mark.parametrize("action", ["quarantine", "permanent"])
    def test_are_those_of_the_journal(
        self, tmp_path: Path, night: WrittenNight, action: str
    ) -> None:
        found = removals_in_place(self.journal(tmp_path, night, action=action))
        assert [entry.image.url for entry in found] == [
            night.url(path) for path in ("c1/a.jpg", "c2/b.jpg", "l.jpg")
        ]

    @pytest.mark.parametrize(
        "to_url",
        [
            None,
            "file:///etc/passwd",
            f"file:///q/{APPLY_ID}/../../etc/passwd",
            f"file:///q/{APPLY_ID}/l.jpg",
            f"file:///q/{APPLY_ID}/c1/a.jpg/",
        ],
    )
    @pytest.mark.parametrize("action", ["quarantine", "permanent"])
    def test_elsewhere_are_refused(
        self, tmp_path: Path, night: WrittenNight, action: str, to_url: str | None
    ) -> None:
        def change(entry: Entry) -> Entry:
            is_first = entry.image.url.endswith("/a.jpg")
            return entry.model_copy(update={"to_url": to_url}) if is_first else entry

        journal = self.journal(tmp_path, night, change, action=action)
        with pytest.raises(ArtifactError, match=r"^expected an image of file:.* at file:"):
            removals_in_place(journal)

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "{source}/../x.jpg", "{source}"])
    def test_outside_the_source_are_refused(
        self, tmp_path: Path, night: WrittenNight, url: str
    ) -> None:
        url = url.format(source=night.source_url)
        to_folder = f"file:///q/{self.APPLY_ID}"

        def change(entry: Entry) -> Entry:
            to_url = waiting_url(url, "quarantine", night.source_url, to_folder)
            image = entry.image.model_copy(update={"url": url})
            return entry.model_copy(update={"image": image, "to_url": to_url})

        with pytest.raises(ArtifactError, match=r"^expected an image of file:"):
            removals_in_place(self.journal(tmp_path, night, change))

    @pytest.mark.parametrize("to_folder", ["file:///", "file:///home/user", f"file:///q{APPLY_ID}"])
    def test_in_a_folder_that_is_not_of_the_apply_are_refused(
        self, tmp_path: Path, night: WrittenNight, to_folder: str
    ) -> None:
        with pytest.raises(ArtifactError, match=r"^expected an image of file:"):
            removals_in_place(self.journal(tmp_path, night, to_folder=to_folder))
