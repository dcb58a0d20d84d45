"""What a night adds to the library."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tasks.schemas import IMAGES, MANIFEST, MATCHES
from tasks.stage12_extend_library import kept_images


def decision(name: str, action: str, reason: str = "") -> dict[str, Any]:
    return {
        "url": f"file:///{name}",
        "size_bytes": 1,
        "etag": "e",
        "sha256": "ab",
        "cluster_id": -1,
        "action": action,
        "reason": reason,
    }


def image(name: str, camera: str = "", **values: Any) -> dict[str, Any]:
    known = {"image_id": name, "url": f"file:///{name}", "size_bytes": 1, "etag": "e"}
    time = datetime(2026, 1, 1, tzinfo=UTC)
    return known | {"camera": camera, "captured_at": time, "item_id": 0} | values


def match(name: str, **values: Any) -> dict[str, Any]:
    keeper = {"image_id": name, "url": f"file:///{name}", "size_bytes": 1, "etag": "e"}
    keeper["sha256"] = "ab"
    return {"image_id": name} | {f"keeper_{key}": said for key, said in keeper.items()} | values


def test_library_gets_what_stays_and_is_new_and_has_its_own_feature() -> None:
    manifest = pa.Table.from_pylist(
        [
            decision("a", "keep"),
            decision("b", "remove"),
            decision("c", "keep", "kept by an earlier night"),
            decision("d", "library", "kept by an earlier night"),
            decision("e", "skip"),
            decision("f", "keep"),
            decision("g", "keep"),
        ],
        MANIFEST,
    )
    images = pa.Table.from_pylist(
        [
            *(image("a", "west"), image("b"), image("c"), image("e", error="empty file")),
            *(image("f", "east"), image("g", stands_on="a")),
        ],
        IMAGES,
    )

    matches = pa.Table.from_pylist([match("c")], MATCHES)

    assert kept_images(manifest, images, matches)["image_id"].to_pylist() == ["f", "a"]


def test_known_image_is_kept_once_more_in_another_view() -> None:
    names = ("plain", "same", "new", "back")
    known = [decision(name, "keep", "kept by an earlier night") for name in names]
    views = {"plain": None, "same": "v", "new": "v", "back": None}
    images = [image(name, view=view) for name, view in views.items()]
    before = {"plain": None, "same": "v", "new": "w", "back": "v"}
    matches = [match(name, keeper_view=view) for name, view in before.items()]

    kept = kept_images(
        pa.Table.from_pylist(known, MANIFEST),
        pa.Table.from_pylist(images, IMAGES),
        pa.Table.from_pylist(matches, MATCHES),
    )

    assert kept["image_id"].to_pylist() == ["back", "new"]
