"""The summary: what a manifest amounts to."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tasks.references import GateCheck
from tasks.schemas import MANIFEST
from tasks.summary import (
    Alert,
    Counts,
    Summary,
    count_decisions,
    largest_first,
    summarize,
    summary_markdown,
    summary_rows,
)

METADATA = {
    "run_id": "night-1",
    "source_url": "s3://bucket/night",
    "eps": "0.05",
    "recall": "0.99951",
    "is_complete": "true",
    "is_search_exact": "false",
    "weights_digest": "abc",
    "num_ignored": '{"hidden": 2, "links": 1}',
}


def decision(
    name: str, sha256: str | None, size_bytes: int, cluster_id: int, action: str, **values: Any
) -> dict[str, Any]:
    return {
        "url": f"s3://bucket/{name}.jpg",
        "size_bytes": size_bytes,
        "etag": "e",
        "sha256": sha256,
        "cluster_id": cluster_id,
        "action": action,
        "reason": "",
    } | values


def manifest_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), MANIFEST)


MANIFEST_OF_THE_NIGHT = manifest_of(
    decision("a", "aa", 1_000, 0, "keep"),
    decision("b", "aa", 1_000, 0, "remove", distance=0.0),
    decision("c", "cc", 200, 0, "remove", distance=0.04),
    decision("d", "dd", 30, 1, "remove", distance=0.06),
    decision("e", "ee", 4, 1, "keep"),
    decision("f", "ff", 5, 2, "keep"),
    decision("g", "ff", 6, 2, "remove", distance=0.0),
    decision("h", "hh", 7, -1, "keep"),
    decision("i", "hh", 8, -1, "keep"),
    decision("j", "00", 9, -1, "skip"),
    decision("k", None, 10, -1, "skip"),
)


def summary_of(manifest: pa.Table = MANIFEST_OF_THE_NIGHT, **known: Any) -> Summary:
    metadata = METADATA | known.pop("metadata", {})
    urls = {"manifest_url": "s3://cameras/m.parquet", "report_url": "s3://cameras/r.html"}
    return summarize(manifest, metadata, **urls, **known)


def test_decisions_are_counted() -> None:
    assert count_decisions(MANIFEST_OF_THE_NIGHT, eps=0.05).model_dump() == {
        "num_images": 11,
        "num_unreadable": 2,
        "num_exact_copies": 3,
        "num_clusters": 3,
        "cluster_sizes": {2: 2, 3: 1},
        "num_noise": 2,
        "num_keep": 5,
        "num_remove": 4,
        "num_remove_for_earlier": 0,
        "num_kept_before": 0,
        "num_orphans": 1,
        "bytes_total": 2_279,
        "bytes_saved": 1_236,
        "percent_annotation_left": 55.56,
    }


def test_empty_manifest_counts_nothing() -> None:
    assert count_decisions(MANIFEST.empty_table(), eps=0.05).model_dump() == {
        "num_images": 0,
        "num_unreadable": 0,
        "num_exact_copies": 0,
        "num_clusters": 0,
        "cluster_sizes": {},
        "num_noise": 0,
        "num_keep": 0,
        "num_remove": 0,
        "num_remove_for_earlier": 0,
        "num_kept_before": 0,
        "num_orphans": 0,
        "bytes_total": 0,
        "bytes_saved": 0,
        "percent_annotation_left": 100.0,
    }


def test_keepers_of_earlier_nights_are_no_images_of_this_one() -> None:
    manifest = manifest_of(
        decision("a", "aa", 1, 0, "keep", reason="kept by an earlier night"),
        decision("b", "bb", 10, 0, "remove", keeper_url="s3://bucket/a.jpg", distance=0.01),
        decision("c", "cc", 100, 1, "remove", keeper_url="s3://bucket/old.jpg", distance=0.02),
        decision("old", "cc", 1_000, 1, "library"),
    )

    counts = count_decisions(manifest, eps=0.05)

    assert (counts.num_images, counts.num_keep, counts.num_remove) == (3, 1, 2)
    assert (counts.num_remove_for_earlier, counts.num_kept_before) == (1, 1)
    assert (counts.num_exact_copies, counts.num_orphans) == (0, 0)
    assert (counts.bytes_total, counts.bytes_saved) == (111, 110)
    rows = dict(summary_rows(summary_of(manifest)))
    assert rows["keep"] == "1, 1 of them by an earlier night"
    assert rows["remove"] == "2, 1 of them for images of earlier nights"


def test_unreadable_images_are_neither_copies_nor_noise_nor_cost() -> None:
    manifest = manifest_of(
        decision("a", "00", 1, -1, "skip"),
        decision("b", "00", 1, -1, "skip"),
        decision("c", "00", 1, -1, "keep"),
    )
    counts = count_decisions(manifest, eps=0.05)
    assert (counts.num_unreadable, counts.num_exact_copies, counts.num_noise) == (2, 0, 1)
    assert counts.percent_annotation_left == 100.0


@pytest.mark.parametrize(
    ("num_keep", "num_remove", "percent"), [(1, 2, 33.33), (2, 1, 66.67), (1, 7, 12.5), (3, 0, 100)]
)
def test_annotation_left_is_the_kept_share_of_the_readable(
    num_keep: int, num_remove: int, percent: float
) -> None:
    rows = [decision(f"k{n}", f"k{n}", 1, 0, "keep") for n in range(num_keep)]
    rows += [decision(f"r{n}", f"r{n}", 1, 0, "remove", distance=0.0) for n in range(num_remove)]
    assert count_decisions(manifest_of(*rows), eps=0.05).percent_annotation_left == percent


@pytest.mark.parametrize(
    ("distance", "num_orphans"),
    [
        (0.0, 0),
        (float(np.nextafter(np.float32(0.05), np.float32(0))), 0),
        (float(np.float32(0.05)), 1),  # the float32 is a little above 0.05
        (0.06, 1),
    ],
)
def test_image_is_an_orphan_when_its_keeper_is_beyond_eps(
    distance: float, num_orphans: int
) -> None:
    manifest = manifest_of(decision("a", "aa", 1, 0, "remove", distance=distance))
    assert count_decisions(manifest, eps=0.05).num_orphans == num_orphans


def test_keeper_at_eps_itself_makes_no_orphan() -> None:
    manifest = manifest_of(decision("a", "aa", 1, 0, "remove", distance=0.125))
    assert count_decisions(manifest, eps=0.125).num_orphans == 0


def test_summary_takes_the_rest_from_the_metadata() -> None:
    rest = summary_of().model_dump(exclude=set(Counts.model_fields))
    assert rest == {
        "run_id": "night-1",
        "source_url": "s3://bucket/night",
        "manifest_url": "s3://cameras/m.parquet",
        "report_url": "s3://cameras/r.html",
        "is_complete": True,
        "eps": 0.05,
        "eps_of_cameras": {},
        "recall": 0.99951,
        "is_search_exact": False,
        "weights_digest": "abc",
        "gate": None,
        "num_embedded": None,
        "num_ignored": {"hidden": 2, "links": 1},
        "num_stay_reviewed": 0,
        "num_go_reviewed": 0,
        "cost_saved": None,
        "cost_left": None,
        "seconds": {},
        "executed_at": None,
        "night_id": None,
        "settings_digest": None,
        "mean_nearest_distance": None,
        "alerts": (),
    }


@pytest.mark.parametrize(
    ("gate", "line"),
    [
        (
            GateCheck(1_200, 60, 0.0123, is_trusted=True),
            "1,200 frames stand on another; largest error of 60 samples 0.0123",
        ),
        (
            GateCheck(7, 2, 0.25, is_trusted=False),
            "off for this night; largest error of 2 samples 0.2500",
        ),
        (
            GateCheck(7, 0, None, is_trusted=False),
            "off for this night; largest error of 0 samples unknown",
        ),
    ],
)
def test_summary_says_what_the_gate_did(gate: GateCheck, line: str) -> None:
    summary = summary_of(metadata={"gate": json.dumps(asdict(gate))})
    assert summary.gate == gate
    assert dict(summary_rows(summary))["change gate"] == line
    assert "change gate" not in dict(summary_rows(summary_of()))


def test_summary_counts_with_the_eps_of_the_manifest() -> None:
    assert summary_of().num_orphans == 1
    assert summary_of(metadata={"eps": "0.1"}).num_orphans == 0


def test_orphans_are_counted_by_the_eps_of_the_camera() -> None:
    rows = [decision(name, "aa", 1, 0, "remove", distance=0.04) for name in ("a/0", "tunnel/0")]
    said = {"source": {"partition_by": "^[^/]+"}, "cameras": [{"pattern": "tunnel", "eps": 0.03}]}

    metadata = {"source_url": "s3://bucket", "config": json.dumps(said)}
    summary = summary_of(manifest_of(*rows), metadata=metadata)

    assert summary.num_orphans == 1
    assert dict(summary_rows(summary))["eps"] == "0.05; 0.03 for cameras 'tunnel'"


def test_cost_is_price_times_images() -> None:
    summary = summary_of(price_per_image=0.26)
    assert (summary.cost_saved, summary.cost_left) == (1.04, 1.3)
    free = summary_of(price_per_image=0.0)
    assert (free.cost_saved, free.cost_left) == (0.0, 0.0)


def test_summary_reads_back_from_its_json() -> None:
    summary = summary_of(price_per_image=2.0, num_embedded=9, seconds={"list": 0.1})
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_summary_is_frozen() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        summary_of().num_keep = 0  # type: ignore[misc]


def test_rows_are_for_people() -> None:
    summary = summary_of(
        price_per_image=300.0, num_embedded=1_234, seconds={"list": 0.26, "embed": 61.0}
    )
    assert summary_rows(summary) == [
        ("run", "night-1"),
        ("source", "s3://bucket/night"),
        ("images", "11"),
        ("unreadable (skipped)", "2"),
        ("exact copies", "3"),
        ("clusters", "3 (1 of 3, 2 of 2 images)"),
        ("noise (always kept)", "2"),
        ("keep", "5"),
        ("remove", "4"),
        ("orphans", "1"),
        ("bytes saved", "1,236 of 2,279"),
        ("annotation cost left", "55.6 %"),
        ("annotation cost", "1,500.00 left, 1,200.00 saved"),
        ("eps", "0.05"),
        ("recall of pairs within eps", "0.9995 (approximate search)"),
        ("complete night", "yes"),
        ("embedded now", "1,234"),
        ("left out of the listing", "2 hidden, 1 links"),
        ("weights", "VGG16 ImageNet, sha256 abc"),
        ("seconds", "list 0.3, embed 61.0"),
        ("manifest", "s3://cameras/m.parquet"),
        ("report", "s3://cameras/r.html"),
    ]


def test_alerts_come_first_among_the_rows() -> None:
    alerts = (Alert(name="drift", message="one"), Alert(name="recall.low", message="two"))
    rows = summary_rows(summary_of().model_copy(update={"alerts": alerts}))
    assert rows[1:4] == [("source", "s3://bucket/night"), ("alert", "one"), ("alert", "two")]


def test_rows_leave_out_what_is_not_known() -> None:
    labels = {label for label, _ in summary_rows(summary_of())}
    assert not labels & {"annotation cost", "embedded now", "seconds"}


def test_rows_say_what_is_special() -> None:
    metadata = {"is_complete": "false", "is_search_exact": "true", "recall": "1.0"}
    special = summary_of(
        MANIFEST.empty_table(), metadata=metadata | {"num_ignored": "{}"}, num_embedded=0
    )
    rows = dict(summary_rows(special))
    assert rows["complete night"] == "NO: some shards failed"
    assert rows["recall of pairs within eps"] == "1.0000 (every pair compared)"
    assert rows["left out of the listing"] == "nothing"
    assert rows["clusters"] == "0"
    assert rows["embedded now"] == "0"


def test_largest_clusters_come_first_and_few_of_them() -> None:
    assert largest_first({2: 5, 10: 1, 3: 4}) == [(10, 1), (3, 4), (2, 5)]
    assert largest_first({2: 5, 10: 1, 3: 4}, limit=2) == [(10, 1), (3, 4)]
    assert len(largest_first(dict.fromkeys(range(20), 1))) == 8


def test_markdown_is_a_table_whatever_the_values_hold() -> None:
    markdown = summary_markdown(summary_of(metadata={"source_url": "/a|b|c"}))
    lines = markdown.split("\n")
    assert lines[:4] == ["| | |", "| --- | --- |", "| run | night-1 |", "| source | /a\\|b\\|c |"]
    assert len(lines) == 2 + len(summary_rows(summary_of()))


def test_what_a_person_wants_beyond_eps_is_no_orphan_and_is_told() -> None:
    manifest = manifest_of(
        decision("a", "aa", 1, 0, "keep", reason="reviewed: keep"),
        decision("b", "bb", 1, 0, "remove", distance=0.06, reason="same scene, reviewed"),
        decision("c", "cc", 1, 0, "remove", distance=0.06, reason="same cluster"),
        decision("d", "dd", 1, 1, "keep", reason="reviewed: not a duplicate"),
    )
    summary = summary_of(manifest)
    assert (summary.num_orphans, summary.num_stay_reviewed, summary.num_go_reviewed) == (1, 2, 1)
    assert ("reviewed", "2 stay, 1 go beyond eps as one scene") in summary_rows(summary)
    assert "reviewed" not in dict(summary_rows(summary_of()))
