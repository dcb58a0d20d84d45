"""The demo's verdict can be a bad one, and its night is the same every time."""

import hashlib
from pathlib import Path

from benchmarks.demo import compare
from benchmarks.demo_night import GroundTruth, lay_out_night

TRUTH = GroundTruth(
    groups={"road": frozenset({"a.jpg", "b.jpg"})},
    unique=frozenset({"c.jpg"}),
    broken=frozenset({"d.jpg"}),
    num_exact_copies=1,
)


def row(name: str, cluster_id: int, action: str, keeper: str | None = None) -> dict[str, object]:
    return {
        "url": f"file:///night/{name}",
        "cluster_id": cluster_id,
        "action": action,
        "keeper_url": keeper and f"file:///night/{keeper}",
        "sha256": "same" if cluster_id == 0 else name,
    }


RIGHT = [
    row("a.jpg", 0, "keep"),
    row("b.jpg", 0, "remove", "a.jpg"),
    row("c.jpg", -1, "keep"),
    row("d.jpg", -1, "skip"),
]


def test_right_manifest_has_no_difference() -> None:
    assert compare(RIGHT, TRUTH, "file:///night") == []


def test_every_kind_of_mistake_is_named() -> None:
    wrong = [
        row("a.jpg", 0, "remove", "c.jpg"),
        row("b.jpg", 1, "keep"),
        row("c.jpg", 0, "remove", "a.jpg"),
        row("d.jpg", -1, "keep"),
    ]
    assert compare(wrong, TRUTH, "file:///night") == [
        "expected that clusters are the repeated scenes",
        "expected that photographs that come once are kept",
        "expected that the broken file, and nothing else, is skipped",
        "expected that every removed photograph has its keeper in its own scene",
    ]


def test_night_has_the_same_bytes_and_times_every_time(tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> list[tuple[str, str, int]]:
        lay_out_night(folder)
        return [
            (
                str(path.relative_to(folder)),
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mtime_ns,
            )
            for path in sorted(folder.rglob("*.jpg"))
        ]

    first = fingerprint(tmp_path / "night")
    assert len(first) == 43
    assert fingerprint(tmp_path / "night") == first
    assert fingerprint(tmp_path / "elsewhere") == first
