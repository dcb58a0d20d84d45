"""What must hold before anything is touched; a guard that is not met names what waives it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ApplyConfig, ApplySettings
from tasks import storage
from tasks.apply01_plan_actions import Places, places_of
from tasks.apply02_check_guards import (
    Guard,
    copies_guard,
    count_orphans,
    guards_of,
    lock_guard,
    overall_fraction,
    quarantine_guard,
    removed_fractions,
    require_met,
)
from tasks.apply03_lock_source import lock_source
from tasks.errors import GuardError
from tasks.manifests import LoadedManifest, read_manifest
from tasks.stores import store_of
from tests.written_nights import WrittenNight, write_night

NOW = datetime(2026, 5, 17, 12, tzinfo=UTC)


@pytest.fixture
def night(tmp_path: Path) -> WrittenNight:
    """A keeper, three images to remove, and one image like no other."""
    return write_night(
        str(tmp_path), {"cam1/k.jpg": ["cam1/a.jpg", "cam1/b.jpg", "cam2/c.jpg"]}, noise=["n.jpg"]
    )


def guards(
    night: WrittenNight, *, age: timedelta = timedelta(hours=1), **settings: Any
) -> dict[str, Guard]:
    found = guards_of(
        read_manifest(night.manifest_url),
        ApplySettings(**settings),
        written_at=NOW - age,
        present=NOW,
    )
    return {guard.name: guard for guard in found}


def partitioned(night: WrittenNight, pattern: str | None) -> LoadedManifest:
    config = json.dumps({"source": {"partition_by": pattern}})
    return read_manifest(night.rewrite(night.rows, config=config).manifest_url)


class TestGuardsOfTheManifest:
    def test_usual_night_meets_all(self, night: WrittenNight) -> None:
        found = guards(night)
        assert {name: str(guard) for name, guard in found.items()} == {
            "complete night": "complete night: complete (met)",
            "age of the manifest": "age of the manifest: written 0.0 days ago, at most 7 (met)",
            "twins": "twins: 0 images to remove have a keeper farther away than eps (met)",
            "own features": (
                "own features: 0 images to remove were judged by the frame they stand on (met)"
            ),
            "share removed": "share removed: 60.00% of the readable images, at most 98.00% (met)",
            "share removed of a partition": (
                "share removed of a partition: 60.00% of partition '', at most 98.00% (met)"
            ),
        }
        require_met(found.values())

    def test_copying_removes_nothing_so_that_twins_and_shares_do_not_matter(
        self, night: WrittenNight
    ) -> None:
        found = guards(night, action="copy", copy_to_url="/to")
        assert list(found) == ["complete night", "age of the manifest"]

    @pytest.mark.parametrize("action", ["quarantine", "permanent"])
    def test_removing_looks_at_everything(self, night: WrittenNight, action: str) -> None:
        assert len(guards(night, action=action)) == 6

    def test_partial_night_is_refused_unless_that_is_allowed(self, night: WrittenNight) -> None:
        partial = night.rewrite(night.rows, is_complete="false")
        guard = guards(partial)["complete night"]
        assert (guard.is_met, guard.finding) == (False, "some shards failed")
        assert guard.setting == "--allow-partial"
        assert guards(partial, guards={"allow_partial": True})["complete night"].is_met

    @pytest.mark.parametrize(
        ("age", "most", "is_met"),
        [
            (timedelta(days=7), "7d", True),
            (timedelta(days=7, microseconds=1), "7d", False),
            (timedelta(days=8), "10d", True),
            (timedelta(hours=37), "36h", False),
            (timedelta(0), "0s", True),
            (timedelta(microseconds=1), "0s", False),
            (timedelta(days=20_000), "7d", False),  # a store that tells no times says 1970
        ],
    )
    def test_age(self, night: WrittenNight, age: timedelta, most: str, is_met: bool) -> None:
        guard = guards(night, age=age, guards={"max_manifest_age": most})["age of the manifest"]
        assert guard.is_met is is_met
        assert guard.setting == "--max-manifest-age"

    def test_age_is_said_in_days(self, night: WrittenNight) -> None:
        guard = guards(night, age=timedelta(days=8, hours=12))["age of the manifest"]
        assert guard.finding == "written 8.5 days ago, at most 7"
        found = guards(night, guards={"max_manifest_age": "36h"})["age of the manifest"]
        assert found.finding == "written 0.0 days ago, at most 1.5"

    def test_keeper_beyond_eps_is_refused_unless_that_is_allowed(self, night: WrittenNight) -> None:
        rows = [
            row | {"distance": 0.0625} if row["action"] == "remove" else row for row in night.rows
        ]
        far = night.rewrite(rows)
        guard = guards(far)["twins"]
        assert (guard.is_met, guard.setting) == (False, "--allow-orphans")
        assert guard.finding == "3 images to remove have a keeper farther away than eps"
        assert guards(far, guards={"allow_orphans": True})["twins"].is_met

    def test_keeper_beyond_the_eps_of_the_camera_is_refused(self, night: WrittenNight) -> None:
        said = {
            "source": {"partition_by": "^[^/]+"},
            "cameras": [{"pattern": "^cam2$", "eps": 0.03}],
        }
        night = night.rewrite(night.rows, config=json.dumps(said))
        assert guards(night)["twins"].finding.startswith("1 images to remove have a keeper")
        assert not guards(night)["twins"].is_met

    def test_keeper_of_an_earlier_night_is_in_no_share(self, night: WrittenNight) -> None:
        earlier = night.rows[0] | {
            "url": "file:///elsewhere/old.jpg",
            "action": "library",
            "keeper_url": None,
            "distance": None,
        }
        found = guards(night.rewrite([*night.rows, earlier]))
        assert found["share removed"].finding == guards(night)["share removed"].finding
        assert "60.00% of partition ''" in found["share removed of a partition"].finding

    def test_gated_removal_is_refused_unless_that_is_allowed(self, night: WrittenNight) -> None:
        assert guards(night)["own features"].is_met
        rows = [
            row | {"reason": "within eps, gated"} if row["action"] == "remove" else row
            for row in night.rows
        ]
        gated = night.rewrite(rows)
        guard = guards(gated)["own features"]
        assert (guard.is_met, guard.setting) == (False, "--allow-gated")
        assert guard.finding == "3 images to remove were judged by the frame they stand on"
        assert guards(gated, guards={"allow_gated": True})["own features"].is_met

    @pytest.mark.parametrize(("most", "is_met"), [(0.6, True), (0.59, False), (0, False)])
    def test_shares(self, night: WrittenNight, most: float, is_met: bool) -> None:
        found = guards(night, guards={"max_removed_fraction": most})
        for name in ("share removed", "share removed of a partition"):
            assert found[name].is_met is is_met
            assert found[name].setting == "--max-removed-fraction"

    def test_one_partition_that_loses_too_much_is_named(self, night: WrittenNight) -> None:
        partitioned(night, "^([^/]+)/")
        found = guards(night, guards={"max_removed_fraction": 0.7})
        assert found["share removed"].is_met
        guard = found["share removed of a partition"]
        assert not guard.is_met
        assert guard.finding == "100.00% of partition 'cam2', at most 70.00%"

    def test_name_of_a_partition_plays_no_tricks(self, tmp_path: Path) -> None:
        night = write_night(str(tmp_path), {"k.jpg": ["x\n\u202e\x1b[2J/a.jpg"]})
        partitioned(night, "(?s)^(.+)/")
        guard = guards(night)["share removed of a partition"]
        assert guard.finding == "100.00% of partition 'x\\n\\u202e\\x1b[2J', at most 98.00%"

    def test_empty_night_meets_all(self, night: WrittenNight) -> None:
        assert all(guard.is_met for guard in guards(night.rewrite([])).values())


class TestRequireMet:
    def test_names_every_guard_that_is_not_met_and_what_lets_it_pass(self) -> None:
        with pytest.raises(GuardError) as refusal:
            require_met(
                [
                    Guard("a", is_met=False, finding="too much", setting="--a"),
                    Guard("b", is_met=True, finding="fine", setting="--b"),
                    Guard("c", is_met=False, finding="too old", setting="--c"),
                ]
            )
        assert str(refusal.value) == (
            "nothing was done, because of: a: too much; --a lets it pass. "
            "c: too old; --c lets it pass"
        )

    def test_lets_pass_what_is_met(self) -> None:
        require_met([Guard("b", is_met=True, finding="fine", setting="--b")])
        require_met([])


class TestShares:
    def test_are_of_the_readable_images(self, night: WrittenNight) -> None:
        rows = [
            row | {"action": "skip", "sha256": None} if row["url"].endswith("n.jpg") else row
            for row in night.rows
        ]
        manifest = read_manifest(night.rewrite(rows).manifest_url)
        assert overall_fraction(manifest) == 0.75
        assert removed_fractions(manifest) == {"": 0.75}

    @pytest.mark.parametrize(
        ("pattern", "shares"),
        [
            (None, {"": 0.6}),
            ("^([^/]+)/", {"cam1": 2 / 3, "cam2": 1.0, "": 0.0}),
            ("^cam", {"cam": 0.75, "": 0.0}),
            ("nowhere", {"": 0.6}),
            ("(cam1/)?", {"cam1/": 2 / 3, "": 0.5}),
        ],
    )
    def test_go_by_the_partitions_of_the_run(
        self, night: WrittenNight, pattern: str | None, shares: dict[str, float]
    ) -> None:
        assert removed_fractions(partitioned(night, pattern)) == shares

    def test_partition_of_unreadable_images_has_no_share(self, night: WrittenNight) -> None:
        rows = [
            row | {"action": "skip", "keeper_url": None, "distance": None}
            if "cam2/" in row["url"]
            else row
            for row in night.rows
        ]
        found = removed_fractions(partitioned(night.rewrite(rows), "^([^/]+)/"))
        assert found == {"cam1": 2 / 3, "": 0.0}

    def test_of_nothing_is_nothing(self, night: WrittenNight) -> None:
        manifest = read_manifest(night.rewrite([]).manifest_url)
        assert (overall_fraction(manifest), removed_fractions(manifest)) == (0.0, {})

    @given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["keep", "remove", "skip"]))))
    def test_add_up_to_the_overall_share(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
    ) -> None:
        manifest = manifest_of(tmp_path_factory, [("x", "keep"), *rows])
        shares = removed_fractions(manifest)
        readable = {"x": 1, "y": 0, "z": 0}
        for partition, action in rows:
            readable[partition] += action != "skip"
        removed = sum(share * readable[name] for name, share in shares.items())
        assert overall_fraction(manifest) == pytest.approx(removed / sum(readable.values()))
        assert max(shares.values()) >= overall_fraction(manifest) - 1e-12


def manifest_of(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> LoadedManifest:
    """A manifest of images without files, in partitions, the first one the keeper of all."""
    night = WrittenNight(
        "file:///images", "", f"{tmp_path_factory.getbasetemp()}/shares.parquet", [], {}
    )
    night = night.rewrite(
        [
            {
                "url": f"file:///images/{partition}/{number}.jpg",
                "size_bytes": 1,
                "etag": "",
                "sha256": f"{number:064d}",
                "cluster_id": 0,
                "action": action,
                "keeper_url": "file:///images/x/0.jpg" if action == "remove" else None,
                "distance": 0.0 if action == "remove" else None,
                "reason": "",
            }
            for number, (partition, action) in enumerate(rows)
        ],
        config='{"source": {"partition_by": "^([^/]+)/"}}',
    )
    return read_manifest(night.manifest_url)


class TestOrphans:
    def test_distance_counts_as_it_is_written_down(self, night: WrittenNight) -> None:
        # 0.05 as float32 is a little above 0.05.
        rows = [
            row | {"distance": 0.05} if row["action"] == "remove" else row for row in night.rows
        ]
        assert count_orphans(read_manifest(night.rewrite(rows).manifest_url)) == 3
        exact = night.rewrite(rows, eps="0.0500001")
        assert count_orphans(read_manifest(exact.manifest_url)) == 0

    def test_nothing_to_remove_makes_none(self, night: WrittenNight) -> None:
        assert count_orphans(read_manifest(night.rewrite([]).manifest_url)) == 0


class TestQuarantine:
    def places(self, night: WrittenNight, **settings: Any) -> Places:
        config = ApplyConfig(manifest_url=night.manifest_url, **settings)
        return places_of(read_manifest(night.manifest_url), config)

    def test_in_the_workspace_is_met(self, place: str) -> None:
        night = write_night(place, {"k.jpg": ["a.jpg"]})
        guard = quarantine_guard(self.places(night), store_of(night.source_url))
        assert (guard.is_met, guard.finding) == (True, "on the same store as the images")

    def test_on_another_store_is_not_met(
        self, tmp_path: Path, night: WrittenNight, s3_url: str
    ) -> None:
        for source, other in (
            (night, f"{s3_url}/q"),
            (write_night(s3_url, {"k.jpg": ["a.jpg"]}), f"{tmp_path}/q"),
        ):
            places = self.places(source, quarantine_url=other)
            guard = quarantine_guard(places, store_of(source.source_url))
            assert not guard.is_met
            assert guard.finding == (
                f"{places.quarantine_url} is on another store than {source.source_url}"
            )
            assert guard.setting == "--quarantine-to URL, or --permanent"

    def test_on_another_disk_is_not_met(self, night: WrittenNight) -> None:
        places = self.places(night, quarantine_url="/dev/shm/dedup-tests/not-made")
        source, other = Path(places.source_url.removeprefix("file://")), Path("/dev/shm")
        if not other.is_dir() or source.stat().st_dev == other.stat().st_dev:
            pytest.skip("needs two disks")
        assert not quarantine_guard(places, store_of(night.source_url)).is_met

    def test_inside_the_source_is_not_met(self, night: WrittenNight) -> None:
        places = self.places(night, quarantine_url=night.url("q"))
        guard = quarantine_guard(places, store_of(night.source_url))
        assert not guard.is_met
        assert guard.finding == (
            f"{places.quarantine_url} is inside the source, whose next night would list it"
        )

    def test_beside_the_source_is_met(self, tmp_path: Path, night: WrittenNight) -> None:
        places = self.places(night, quarantine_url=f"{tmp_path}/source-quarantine")
        assert quarantine_guard(places, store_of(night.source_url)).is_met

    def test_in_a_workspace_inside_the_source_is_met_because_listings_pass_over_it(
        self, night: WrittenNight
    ) -> None:
        inside = storage.join(night.source_url, "work", "runs", "night-0123456789abcdef", "m")
        url = f"{inside.removesuffix('/m')}/manifest.parquet"
        storage.publish_bytes(url, storage.read_bytes(night.manifest_url))
        places = places_of(read_manifest(url), ApplyConfig(manifest_url=url))
        assert places.night_url == night.url("work")
        assert quarantine_guard(places, store_of(night.source_url)).is_met


class TestCopies:
    def test_inside_the_source_are_not_met(self, night: WrittenNight) -> None:
        places = places_of(
            read_manifest(night.manifest_url),
            ApplyConfig(
                manifest_url=night.manifest_url, action="copy", copy_to_url=night.url("copies")
            ),
        )
        guard = copies_guard(places)
        assert (guard.is_met, "next night would list it" in guard.finding) == (False, True)

    def test_elsewhere_are_met(self, night: WrittenNight) -> None:
        target = storage.join(night.workspace_url, "copies")
        config = ApplyConfig(manifest_url=night.manifest_url, action="copy", copy_to_url=target)
        assert copies_guard(places_of(read_manifest(night.manifest_url), config)).is_met


class TestLock:
    def test_free_source_is_met(self, night: WrittenNight) -> None:
        guard = lock_guard(night.source_url)
        assert (guard.is_met, guard.finding) == (True, "free")
        assert storage.list_names(night.source_url, "lock") == []

    def test_held_source_is_not_met_and_its_holder_is_named(self, night: WrittenNight) -> None:
        with lock_source(
            night.source_url, (), purpose="a test", expiry_seconds=60, allow_unlocked=False
        ):
            guard = lock_guard(night.source_url)
        assert (guard.is_met, guard.setting) == (False, "waiting")
        assert " for a test; last renewed " in guard.finding
        assert lock_guard(night.source_url).is_met

    def test_folder_that_is_not_made_yet_is_free(self, tmp_path: Path) -> None:
        assert lock_guard(storage.absolute_url(f"{tmp_path}/not/made")).is_met
