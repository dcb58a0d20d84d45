"""Reading manifests back, trusting none of them, and writing them for spreadsheets."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import storage
from tasks.errors import ArtifactError
from tasks.manifests import (
    LoadedManifest,
    manifest_digest,
    manifest_url_of,
    problems_of,
    problems_of_reasons,
    read_manifest,
    report_url_of,
    workspace_of,
    write_csv,
)
from tasks.schemas import MANIFEST
from tests.written_nights import publish_manifest, write_night

SOURCE = "s3://bucket/night"
ROWS: list[dict[str, Any]] = [
    {
        "url": "s3://bucket/night/a.jpg",
        "size_bytes": 1_000,
        "etag": "e1",
        "sha256": "aa" * 32,
        "cluster_id": 0,
        "action": "keep",
        "keeper_url": None,
        "distance": None,
        "reason": "keeper",
    },
    {
        "url": 's3://bucket/night/b "x",\n1',
        "size_bytes": 20,
        "etag": "e2",
        "sha256": "bb" * 32,
        "cluster_id": 0,
        "action": "remove",
        "keeper_url": "s3://bucket/night/a.jpg",
        "distance": 0.03125,
        "reason": "within eps",
    },
    {
        "url": "s3://bucket/night/c.jpg",
        "size_bytes": 0,
        "etag": "e3",
        "sha256": None,
        "cluster_id": -1,
        "action": "skip",
        "keeper_url": None,
        "distance": None,
        "reason": "unreadable: empty file",
    },
]
TABLE = pa.Table.from_pylist(ROWS, MANIFEST)
KEEP, REMOVE, SKIP = range(3)


def publish(folder: str, rows: list[dict[str, Any]] = ROWS, **metadata: str) -> str:
    """Write a manifest whose digest is right, whatever else it says."""
    url = storage.absolute_url(f"{folder}/runs/night-1/manifest.parquet")
    publish_manifest(url, SOURCE, rows, {"run_id": "night-1"} | metadata)
    return url


def refusal_of(url: str) -> str:
    with pytest.raises(ArtifactError) as refusal:
        read_manifest(url)
    return str(refusal.value)


def test_manifest_reads_back_with_its_summary(place: str) -> None:
    place = storage.absolute_url(place)
    url = publish(place, config='{"source": {"partition_by": "^([^/]+)/", "more": 1}, "x": {}}')
    loaded = read_manifest(url)
    assert loaded.url == url
    assert loaded.table.to_pylist() == ROWS
    assert loaded.digest == storage.read_metadata(url)["digest"]
    assert loaded.partition_by == "^([^/]+)/"
    assert (loaded.summary.run_id, loaded.summary.num_remove) == ("night-1", 1)
    assert loaded.summary.source_url == SOURCE
    assert loaded.summary.manifest_url == f"{place}/runs/night-1/manifest.parquet"
    assert loaded.summary.report_url == f"{place}/runs/night-1/report/index.html"
    assert loaded.summary.num_embedded is None


def test_empty_manifest_reads_back(tmp_path: Path) -> None:
    loaded = read_manifest(publish(str(tmp_path), []))
    assert (loaded.table.num_rows, loaded.summary.num_images) == (0, 0)


def test_manifest_may_be_named_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path))
    monkeypatch.chdir(tmp_path / "runs")
    assert read_manifest("night-1/manifest.parquet").table.num_rows == 3


def test_missing_manifest_is_named(place: str) -> None:
    url = storage.absolute_url(f"{place}/nowhere.parquet")
    assert refusal_of(url) == f"expected a Parquet file, found nothing: {url}"


@pytest.mark.parametrize("version", ["0", "1", ""])
def test_manifest_of_an_older_version_is_refused(tmp_path: Path, version: str) -> None:
    url = publish(str(tmp_path), schema_version=version)
    assert refusal_of(url) == (
        f"manifest has schema version {version}, expected 3 (this image-dedup reads it no more: "
        f"run the night again): {url}"
    )


def test_manifest_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    url = publish(str(tmp_path), schema_version="4")
    other_columns = TABLE.rename_columns([f"new_{name}" for name in TABLE.column_names])
    storage.publish_table(url, other_columns.replace_schema_metadata(storage.read_metadata(url)))
    assert refusal_of(url) == (
        "manifest has schema version 4, expected 3 (a newer image-dedup wrote it, and only that "
        f"reads it): {url}"
    )


def test_table_that_only_looks_like_a_manifest_is_refused(tmp_path: Path) -> None:
    storage.publish_table(f"{tmp_path}/m.parquet", TABLE)
    assert refusal_of(f"{tmp_path}/m.parquet").startswith(
        "manifest has schema version None, expected 3 (this image-dedup reads it no more: "
    )


def test_other_table_is_no_manifest(tmp_path: Path) -> None:
    table = TABLE.drop_columns(["action"]).replace_schema_metadata({"schema_version": "3"})
    storage.publish_table(f"{tmp_path}/m.parquet", table)
    assert refusal_of(f"{tmp_path}/m.parquet").startswith(
        "column action is missing, expected string: file:"
    )


def test_other_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_text("url,action\n")
    assert refusal_of(f"{tmp_path}/m.parquet").startswith(
        "expected a Parquet file, found something else: "
    )


def test_folder_is_no_manifest(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal_of(str(tmp_path))


class TestDigest:
    """A manifest is acted on only as it was written."""

    def test_manifest_without_digest_is_refused(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        metadata = storage.read_metadata(url)
        del metadata["digest"]
        storage.publish_table(url, TABLE.replace_schema_metadata(metadata))
        assert refusal_of(url) == (
            f"manifest has no digest; run the night again to write one: {url}"
        )

    @pytest.mark.parametrize("digest", ["", "0" * 64, "x", "\N{SNOWMAN}"])
    def test_manifest_with_a_wrong_digest_is_refused(self, tmp_path: Path, digest: str) -> None:
        url = publish(str(tmp_path), digest=digest)
        assert refusal_of(url).startswith("manifest was changed or damaged: its digest is ")

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("url", "s3://bucket/night/z.jpg"),
            ("size_bytes", 1_001),
            ("etag", "e9"),
            ("sha256", "cc" * 32),
            ("cluster_id", 1),
            ("action", "skip"),
            ("keeper_url", "s3://bucket/night/c.jpg"),
            ("distance", 0.0),
            ("reason", ""),
        ],
    )
    def test_manifest_with_one_changed_cell_is_refused(
        self, tmp_path: Path, column: str, value: object
    ) -> None:
        url = publish(str(tmp_path))
        rows = [dict(row) for row in ROWS]
        rows[REMOVE][column] = value
        table = pa.Table.from_pylist(rows, MANIFEST)
        storage.publish_table(url, table.replace_schema_metadata(storage.read_metadata(url)))
        assert refusal_of(url).startswith("manifest was changed or damaged: its digest is ")

    @pytest.mark.parametrize("rows", [[], ROWS[:2], [*ROWS, ROWS[2]], ROWS[::-1]])
    def test_manifest_with_other_rows_is_refused(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        url = publish(str(tmp_path))
        table = pa.Table.from_pylist(rows, MANIFEST)
        storage.publish_table(url, table.replace_schema_metadata(storage.read_metadata(url)))
        assert refusal_of(url).startswith("manifest was changed or damaged: its digest is ")

    @pytest.mark.parametrize("change", [{"eps": "0.06"}, {"is_complete": "false"}, {"more": "1"}])
    def test_manifest_that_says_something_else_of_itself_is_refused(
        self, tmp_path: Path, change: dict[str, str]
    ) -> None:
        url = publish(str(tmp_path))
        metadata = storage.read_metadata(url) | change
        storage.publish_table(url, TABLE.replace_schema_metadata(metadata))
        assert refusal_of(url).startswith("manifest was changed or damaged: its digest is ")

    def test_does_not_depend_on_how_the_rows_are_stored(self) -> None:
        rows = [ROWS[KEEP] | {"url": f"{SOURCE}/{n}.jpg"} for n in range(25_000)]
        whole = pa.Table.from_pylist(rows, MANIFEST)
        cut = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 10_001), whole.slice(10_008)])
        more = whole.append_column("more", [list(range(25_000))])
        assert manifest_digest(whole, {"a": "1", "b": "2"}) == manifest_digest(
            cut, {"b": "2", "a": "1", "digest": "0"}
        )
        assert manifest_digest(whole, {}) == manifest_digest(more, {})
        assert manifest_digest(whole, {}) != manifest_digest(whole.slice(1), {})

    def test_stays_the_same_in_all_versions(self) -> None:
        assert manifest_digest(TABLE, {"run_id": "é", "digest": "x"}) == (
            "56ae46ead72f6c9b5b897182b7e6ee4ee5d79dc60f7baa8fc4e2fb9027e25950"
        )

    @given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
    def test_tells_any_two_tables_apart(self, a: list[str], b: list[str]) -> None:
        first, second = (
            pa.Table.from_pylist([ROWS[SKIP] | {"url": u} for u in urls], MANIFEST)
            for urls in (a, b)
        )
        assert (manifest_digest(first, {}) == manifest_digest(second, {})) is (a == b)


class TestMetadata:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("config", "{"),
            ("config", "[]"),
            ("config", '{"source": {"partition_by": 3}}'),
            ("config", "[" * 100_000),
            ("eps", "small"),
            ("eps", "nan"),
            ("eps", "inf"),
            ("eps", ""),
            ("is_complete", "perhaps"),
            ("is_search_exact", ""),
            ("recall", "nan"),
            ("num_ignored", "3"),
            ("num_ignored", '{"hidden": "many"}'),
            ("num_ignored", '{"hidden": NaN}'),
        ],
    )
    def test_that_is_wrong_is_named(self, tmp_path: Path, name: str, value: str) -> None:
        url = publish(str(tmp_path), **{name: value})
        assert refusal_of(url) == f"manifest metadata is missing or wrong: {name}: {url}"

    @pytest.mark.parametrize(("name", "value"), [("eps", "-0.01"), ("eps", "1.01")])
    def test_that_no_config_allows_is_named(self, tmp_path: Path, name: str, value: str) -> None:
        assert name in refusal_of(publish(str(tmp_path), **{name: value}))

    def test_with_an_expression_that_is_none_is_named(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path), config='{"source": {"partition_by": "("}}')
        assert "config" in refusal_of(url)

    @pytest.mark.parametrize(
        "name",
        [
            "run_id",
            "source_url",
            "config",
            "eps",
            "weights_digest",
            "is_complete",
            "recall",
            "is_search_exact",
            "num_ignored",
        ],
    )
    def test_that_is_missing_is_named(self, tmp_path: Path, name: str) -> None:
        url = publish(str(tmp_path))
        metadata = storage.read_metadata(url)
        del metadata[name]
        metadata["digest"] = manifest_digest(TABLE, metadata)
        storage.publish_table(url, TABLE.replace_schema_metadata(metadata))
        assert refusal_of(url) == f"manifest metadata is missing or wrong: {name}: {url}"

    @pytest.mark.parametrize(
        "run_id",
        ["", ".", "..", "../night", "a/b", "a b", "night\n", "-\0", "é", ".hidden", "a\\b"],
    )
    def test_with_a_run_id_that_is_no_name_of_a_folder_is_refused(
        self, tmp_path: Path, run_id: str
    ) -> None:
        url = publish(str(tmp_path), run_id=run_id)
        assert refusal_of(url) == f"no manifest can say: the run id {run_id!r} is none: {url}"

    @pytest.mark.parametrize("run_id", ["night-0123456789abcdef", "-", "_", "a..b", "A.1"])
    def test_with_any_other_run_id_is_read(self, tmp_path: Path, run_id: str) -> None:
        assert read_manifest(publish(str(tmp_path), run_id=run_id)).summary.run_id == run_id

    def test_with_a_source_in_another_spelling_is_refused(self, tmp_path: Path) -> None:
        # The locks of sources that overlap are found by the text of their URLs.
        assert "source_url" in refusal_of(publish(str(tmp_path), source_url=f"{SOURCE}/"))


HOSTILE: list[tuple[str, int, dict[str, Any], str]] = [
    # what, which row, its changes, the problem
    ("outside", KEEP, {"url": "s3://bucket/other/a.jpg"}, "not inside the source"),
    ("another bucket", KEEP, {"url": "s3://other/night/a.jpg"}, "not inside the source"),
    ("sibling", REMOVE, {"url": "s3://bucket/nightly/b.jpg"}, "not inside the source"),
    ("another store", REMOVE, {"url": "file:///night/b.jpg"}, "not inside the source"),
    ("relative", REMOVE, {"url": "b.jpg"}, "not inside the source"),
    ("empty url", REMOVE, {"url": ""}, "not inside the source"),
    ("the source itself", REMOVE, {"url": "s3://bucket/night"}, "not inside the source"),
    ("the source with a slash", REMOVE, {"url": "s3://bucket/night/"}, "not inside the source"),
    ("climbing", REMOVE, {"url": "s3://bucket/night/../b.jpg"}, "not inside the source"),
    ("climbing later", REMOVE, {"url": "s3://bucket/night/x/../../b"}, "not inside the source"),
    ("climbing at the end", REMOVE, {"url": "s3://bucket/night/x/../.."}, "not inside the source"),
    ("absolute", REMOVE, {"url": "s3://bucket/night//etc/passwd"}, "not inside the source"),
    ("skipped outside", SKIP, {"url": "s3://bucket/c.jpg"}, "not inside the source"),
    ("unknown action", REMOVE, {"action": "delete"}, "unknown action 'delete'"),
    ("empty action", KEEP, {"action": ""}, "unknown action ''"),
    ("action in capitals", REMOVE, {"action": "REMOVE"}, "unknown action 'REMOVE'"),
    ("no keeper", REMOVE, {"keeper_url": None}, "its keeper is not kept (None)"),
    ("empty keeper", REMOVE, {"keeper_url": ""}, "its keeper is not kept ('')"),
    ("keeper elsewhere", REMOVE, {"keeper_url": "s3://bucket/night/z"}, "its keeper is not kept"),
    ("itself", REMOVE, {"keeper_url": ROWS[REMOVE]["url"]}, "its keeper is not kept"),
    ("skipped keeper", REMOVE, {"keeper_url": ROWS[SKIP]["url"]}, "its keeper is not kept"),
    ("keep with keeper", KEEP, {"keeper_url": ROWS[SKIP]["url"]}, "action keep with a keeper"),
    ("skip with keeper", SKIP, {"keeper_url": ROWS[KEEP]["url"]}, "action skip with a keeper"),
    ("no distance", REMOVE, {"distance": None}, "its distance to the keeper is None"),
    ("no number", REMOVE, {"distance": float("nan")}, "its distance to the keeper is nan"),
    ("negative", REMOVE, {"distance": -0.5}, "its distance to the keeper is -0.5"),
    ("too far", REMOVE, {"distance": 2.5}, "its distance to the keeper is 2.5"),
    ("endless", REMOVE, {"distance": float("inf")}, "its distance to the keeper is inf"),
    ("no sha", REMOVE, {"sha256": None}, "no digest or no size of its content"),
    ("keeper without sha", KEEP, {"sha256": None}, "no digest or no size of its content"),
    ("empty sha", KEEP, {"sha256": ""}, "no digest or no size of its content"),
    ("short sha", KEEP, {"sha256": "a" * 63}, "no digest or no size of its content"),
    ("long sha", KEEP, {"sha256": "a" * 65}, "no digest or no size of its content"),
    ("sha and newline", KEEP, {"sha256": "a" * 64 + "\n"}, "no digest or no size of its content"),
    ("sha in capitals", KEEP, {"sha256": "A" * 64}, "no digest or no size of its content"),
    ("sha of other letters", KEEP, {"sha256": "g" * 64}, "no digest or no size of its content"),
    ("negative size", REMOVE, {"size_bytes": -1}, "no digest or no size of its content"),
]


class TestRows:
    @pytest.mark.parametrize(
        ("number", "changes", "problem"),
        [case[1:] for case in HOSTILE],
        ids=[case[0] for case in HOSTILE],
    )
    def test_that_no_manifest_can_have_are_refused(
        self, tmp_path: Path, number: int, changes: dict[str, Any], problem: str
    ) -> None:
        rows = [dict(row) for row in ROWS]
        rows[number] |= changes
        message = refusal_of(publish(str(tmp_path), rows))
        assert message.startswith("no manifest can say: ")
        assert problem in message

    @pytest.mark.parametrize(
        "name", ["url", "size_bytes", "etag", "cluster_id", "action", "reason"]
    )
    def test_without_a_value_are_refused(self, tmp_path: Path, name: str) -> None:
        rows = [*ROWS[:2], ROWS[SKIP] | {name: None}]
        nullable = pa.schema([field.with_nullable(True) for field in MANIFEST])
        table = pa.Table.from_pylist(rows, nullable)
        url = publish(str(tmp_path))
        metadata = storage.read_metadata(url)
        metadata["digest"] = manifest_digest(table, metadata)
        storage.publish_table(url, table.replace_schema_metadata(metadata))
        assert refusal_of(url) == f"no manifest can say: 1 rows without {name}: {url}"

    @pytest.mark.parametrize("number", [KEEP, REMOVE, SKIP])
    def test_of_one_image_twice_are_refused(self, tmp_path: Path, number: int) -> None:
        message = refusal_of(publish(str(tmp_path), [*ROWS, ROWS[number]]))
        assert message.startswith("no manifest can say: ")
        assert message.count(" has 2 rows") == 1

    @pytest.mark.parametrize("actions", [("keep", "remove"), ("remove", "keep")])
    def test_that_keep_and_remove_one_image_are_refused(
        self, tmp_path: Path, actions: tuple[str, str]
    ) -> None:
        # The second row would make it its own keeper.
        kept = ROWS[KEEP]
        removed = ROWS[REMOVE] | {"url": kept["url"]}
        rows = [kept, removed] if actions[0] == "keep" else [removed, kept]
        assert " has 2 rows" in refusal_of(publish(str(tmp_path), rows))

    def test_that_are_each_other_s_keepers_are_refused(self, tmp_path: Path) -> None:
        a, b = f"{SOURCE}/a.jpg", f"{SOURCE}/b.jpg"
        rows = [
            ROWS[REMOVE] | {"url": a, "keeper_url": b},
            ROWS[REMOVE] | {"url": b, "keeper_url": a},
        ]
        message = refusal_of(publish(str(tmp_path), rows))
        assert (
            f"its keeper is not kept ({b!r}): {a!r}; its keeper is not kept ({a!r}): {b!r}"
            in message
        )

    def test_many_problems_are_said_in_short(self, tmp_path: Path) -> None:
        rows = [ROWS[SKIP] | {"url": f"{n}.jpg"} for n in range(12)]
        message = refusal_of(publish(str(tmp_path), rows))
        assert message.count("not inside the source") == 3
        assert "; and 9 more: " in message

    @pytest.mark.parametrize("distance", [0.0, 2.0])
    def test_at_the_ends_of_the_range_are_read(self, tmp_path: Path, distance: float) -> None:
        rows = [ROWS[KEEP], ROWS[REMOVE] | {"distance": distance, "size_bytes": 0}]
        assert read_manifest(publish(str(tmp_path), rows)).table.num_rows == 2

    def test_names_in_a_refusal_play_no_tricks(self, tmp_path: Path) -> None:
        rows = [ROWS[SKIP] | {"url": "x\n\x1b[2J\u202e.jpg"}]
        assert refusal_of(publish(str(tmp_path), rows)).isprintable()

    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "url": st.sampled_from(
                        [f"{SOURCE}/{n}" for n in "abc"] + ["x", f"{SOURCE}/.."]
                    ),
                    "size_bytes": st.sampled_from([-1, 0, 5]),
                    "sha256": st.sampled_from([None, "a" * 64, "b"]),
                    "action": st.sampled_from(["keep", "remove", "skip", "x"]),
                    "keeper_url": st.sampled_from([None, *(f"{SOURCE}/{n}" for n in "abcd")]),
                    "distance": st.sampled_from([None, 0.0, 1.5, -1.0, float("nan")]),
                }
            ),
            max_size=4,
        )
    )
    def test_without_problems_remove_nothing_without_a_living_twin(
        self, rows: list[dict[str, Any]]
    ) -> None:
        rows = [row | {"etag": "", "cluster_id": 0, "reason": ""} for row in rows]
        if problems_of(pa.Table.from_pylist(rows, MANIFEST), SOURCE):
            return
        by_url = {row["url"]: row for row in rows}
        assert len(by_url) == len(rows)
        for row in rows:
            assert row["url"].startswith(f"{SOURCE}/")
            if row["action"] == "remove":
                keeper = by_url[row["keeper_url"]]
                assert keeper["action"] == "keep"
                assert keeper["url"] != row["url"]
                assert keeper["sha256"] == "a" * 64
                assert 0 <= row["distance"] <= 2


class TestDamage:
    """No damaged file is acted on, and none ends in a stack trace."""

    def read_damaged(self, url: str, content: bytes) -> LoadedManifest | str:
        Path(url.removeprefix("file://")).write_bytes(content)
        try:
            return read_manifest(url)
        except ArtifactError as error:
            return str(error)

    def test_flipped_bit_is_refused_or_changes_nothing(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        whole, content = read_manifest(url), storage.read_bytes(url)
        num_refused = 0
        for place in random.Random(0).sample(range(len(content) * 8), 800):
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            found = self.read_damaged(url, bytes(damaged))
            if isinstance(found, str):
                num_refused += 1
            else:  # padding, statistics and offsets that no reader looks at
                assert (found.table, found.summary) == (whole.table, whole.summary)
        assert num_refused > 400

    def test_cut_off_manifest_is_refused(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        content = storage.read_bytes(url)
        for length in range(0, len(content), 97):
            found = self.read_damaged(url, content[:length])
            assert isinstance(found, str)
            assert found.startswith("expected a Parquet file, found something else: ")

    def test_column_name_that_is_no_text_is_refused(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        content = storage.read_bytes(url)
        assert content.count(b"keeper_url") >= 2
        found = self.read_damaged(url, content.replace(b"keeper_url", b"keeper\xff\xferl"))
        assert isinstance(found, str)

    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        table = TABLE.append_column("url", TABLE["keeper_url"])
        metadata = storage.read_metadata(url)
        storage.publish_table(url, table.replace_schema_metadata(metadata))
        assert "column url" in refusal_of(url)

    @pytest.mark.parametrize("name", ["url", "etag", "reason"])
    def test_text_that_is_no_utf8_is_refused(self, tmp_path: Path, name: str) -> None:
        url = publish(str(tmp_path))
        binary = pa.array([b"s3://bucket/night/\xff", b"x", b"y"], pa.binary())
        text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
        table = TABLE.set_column(TABLE.column_names.index(name), MANIFEST.field(name), text)
        metadata = storage.read_metadata(url)
        storage.publish_table(url, table.replace_schema_metadata(metadata))
        assert refusal_of(url).startswith("expected a Parquet file, found something else: ")

    def test_metadata_that_is_no_utf8_is_refused(self, tmp_path: Path) -> None:
        url = publish(str(tmp_path))
        metadata = {k.encode(): v.encode() for k, v in storage.read_metadata(url).items()}
        metadata[b"run_id"] = b"night-\xff"
        storage.publish_table(url, TABLE.replace_schema_metadata(metadata))
        assert refusal_of(url).startswith("manifest was changed or damaged: ")


class TestPlaces:
    def test_manifest_and_report_of_a_run_lie_side_by_side(self, tmp_path: Path) -> None:
        url = manifest_url_of("s3://bucket/dedup/", "night-1")
        assert url == "s3://bucket/dedup/runs/night-1/manifest.parquet"
        assert report_url_of(url) == "s3://bucket/dedup/runs/night-1/report/index.html"
        local = manifest_url_of(str(tmp_path), "night-1")
        assert local == f"{storage.absolute_url(str(tmp_path))}/runs/night-1/manifest.parquet"

    def test_workspace_is_found_again(self) -> None:
        url = manifest_url_of("s3://bucket/dedup", "night-1")
        assert workspace_of(url, "night-1") == "s3://bucket/dedup"

    @pytest.mark.parametrize(
        "url",
        [
            "s3://bucket/dedup/runs/night-2/manifest.parquet",
            "s3://bucket/dedup/runs/night-1/copy.parquet",
            "s3://bucket/night-1/manifest.parquet",
            "file:///manifest.parquet",
        ],
    )
    def test_manifest_elsewhere_lies_in_no_workspace(self, url: str) -> None:
        assert workspace_of(url, "night-1") is None


def test_csv_has_a_header_and_a_line_for_every_image() -> None:
    file = io.BytesIO()
    write_csv(TABLE, file)
    assert file.getvalue().decode() == (
        '"url","size_bytes","etag","sha256","cluster_id","action","keeper_url","distance","reason"\n'
        f'"s3://bucket/night/a.jpg",1000,"e1","{"aa" * 32}",0,"keep",,,"keeper"\n'
        f'"s3://bucket/night/b ""x"",\n1",20,"e2","{"bb" * 32}",0,"remove",'
        '"s3://bucket/night/a.jpg",0.03125,"within eps"\n'
        '"s3://bucket/night/c.jpg",0,"e3",,-1,"skip",,,"unreadable: empty file"\n'
    )


def test_csv_reads_back_with_any_name() -> None:
    file = io.BytesIO()
    write_csv(TABLE, file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode(), newline="")))
    assert [row["url"] for row in rows] == [row["url"] for row in ROWS]


class TestKeepersOfEarlierNights:
    """Rows of the library: they may lie anywhere, and images may go for them."""

    EARLIER = ROWS[KEEP] | {
        "url": "s3://elsewhere/old.jpg",
        "action": "library",
        "reason": "kept by an earlier night",
    }
    GOES = ROWS[REMOVE] | {"keeper_url": "s3://elsewhere/old.jpg"}

    def problems(self, *rows: dict[str, Any]) -> list[str]:
        return problems_of(pa.Table.from_pylist(list(rows), MANIFEST), SOURCE)

    def test_images_go_for_them(self) -> None:
        assert self.problems(self.EARLIER, self.GOES) == []

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"sha256": None}, "no digest or no size of its content"),
            ({"size_bytes": -1}, "no digest or no size of its content"),
            ({"keeper_url": "s3://x/y"}, "action library with a keeper"),
        ],
    )
    def test_what_none_can_be_is_refused(self, change: dict[str, Any], problem: str) -> None:
        found = self.problems(self.EARLIER | change)
        assert found == [f"{problem}: 's3://elsewhere/old.jpg'"]

    @pytest.mark.parametrize("url", ["file:///a/../b.jpg", "old.jpg", "file://a//b.jpg"])
    def test_path_with_several_spellings_is_refused(self, url: str) -> None:
        assert self.problems(self.EARLIER | {"url": url}) == [
            f"not spelt as a listing spells it: {url!r}"
        ]

    def test_image_itself_must_be_in_the_source(self) -> None:
        found = self.problems(self.EARLIER, self.GOES | {"url": "s3://elsewhere/new.jpg"})
        assert found == [f"not inside the source {SOURCE!r}: 's3://elsewhere/new.jpg'"]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("keep", "same scene, reviewed"),
        ("remove", "reviewed: keep"),
        ("skip", "reviewed: keep all"),
    ],
)
def test_no_person_can_have_given_such_a_reason(action: str, reason: str) -> None:
    row = {"url": "/u", "size_bytes": 1, "etag": "", "cluster_id": 0}
    table = pa.Table.from_pylist([row | {"action": action, "reason": reason}], MANIFEST)
    expected = [f"action {action} for the reason {reason!r}, which no person gave: '/u'"]
    assert problems_of_reasons(table, is_reviewed=True) == expected


@pytest.mark.parametrize(
    ("action", "reason"), [("remove", "same scene, reviewed"), ("keep", "reviewed: keep")]
)
def test_reason_of_a_person_needs_verdicts_in_the_metadata(action: str, reason: str) -> None:
    row = {"url": "/u", "size_bytes": 1, "etag": "", "cluster_id": 0}
    table = pa.Table.from_pylist([row | {"action": action, "reason": reason}], MANIFEST)
    assert problems_of_reasons(table, is_reviewed=True) == []
    assert len(problems_of_reasons(table, is_reviewed=False)) == 1


@pytest.mark.parametrize(
    "verdicts",
    ["", "null and void", "{}", '{"digest": "0", "of_run": "night-0"}']
    + [json.dumps({"digest": "0" * 64, "of_run": run}) for run in ("", "..", "../x", "a/b")],
)
def test_verdicts_that_are_none_refuse_a_manifest(tmp_path: Path, verdicts: str) -> None:
    night = write_night(str(tmp_path), {"k": ["a"]})
    night.rewrite(night.rows, verdicts=verdicts)
    assert refusal_of(night.manifest_url).startswith(
        "manifest metadata is missing or wrong: verdicts: "
    )
