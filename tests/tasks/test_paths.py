"""Locations as text, whatever stands in it."""

import itertools
import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.paths import (
    as_folder,
    folders_between,
    is_below,
    is_inside,
    is_plain,
    parents_of,
    partition_of,
    relative_to,
    slug,
)

FOLDER = "s3://bucket/night"

components = st.sampled_from(["", ".", "..", "...", "a", "b", ".a", "a.", "night", " ", "*", "\n"])
relative_paths = st.lists(components, max_size=8).map("/".join)
plain_paths = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda name: name not in (".", "..")
    ),
    min_size=1,
    max_size=5,
).map("/".join)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        ("file:///", "file:///"),
        ("file:///a/b", "file:///a/b/"),
        ("", "/"),
    ],
)
def test_folder_ends_with_one_slash(url: str, folder: str) -> None:
    assert as_folder(url) == folder


@pytest.mark.parametrize(
    ("url", "folder", "expected"),
    [
        ("s3://b/night", "s3://b/night", True),
        ("s3://b/night/a.jpg", "s3://b/night", True),
        ("s3://b/night/a.jpg", "s3://b/night/", True),
        ("s3://b/night/x/y/a.jpg", "s3://b", True),
        ("s3://b/nightly/a.jpg", "s3://b/night", False),
        ("s3://b/night.jpg", "s3://b/night", False),
        ("s3://b", "s3://b/night", False),
        ("s3://bucket/a.jpg", "s3://b", False),
        ("file:///b/night", "s3://b/night", False),
    ],
)
def test_is_below(url: str, folder: str, expected: bool) -> None:
    assert is_below(url, folder) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", True),
        ("north/a.jpg", True),
        ("north/../a.jpg", True),
        ("north/./a.jpg", True),
        ("north//a.jpg", True),
        ("a/b/../../c/../d.jpg", True),
        ("..a.jpg", True),
        ("...", True),
        (".a.jpg", True),
        ("north/..", False),
        (".", False),
        ("./", False),
        ("", False),
        ("..", False),
        ("../a.jpg", False),
        ("../night/a.jpg", False),
        ("north/../../a.jpg", False),
        ("north/../../night/a.jpg", False),
        ("./../a.jpg", False),
        ("/../a.jpg", False),
        ("//../../etc/passwd", False),
    ],
)
def test_is_inside(path: str, expected: bool) -> None:
    assert is_inside(f"{FOLDER}/{path}", FOLDER) is expected
    assert is_inside(f"{FOLDER}/{path}", f"{FOLDER}/") is expected


@pytest.mark.parametrize(
    "url", [FOLDER, "s3://bucket/nightly/a.jpg", "s3://bucket", "s3://other/night/a.jpg", ""]
)
def test_what_is_elsewhere_is_not_inside(url: str) -> None:
    assert is_inside(url, FOLDER) is False


@given(relative_paths)
def test_what_is_inside_stays_inside_when_it_is_followed(path: str) -> None:
    if is_inside(f"file:///mnt/night/{path}", "file:///mnt/night"):
        assert posixpath.normpath(f"/mnt/night/{path}").startswith("/mnt/night/")


@given(plain_paths)
def test_every_plain_path_is_inside(path: str) -> None:
    assert is_plain(path) is True
    assert is_inside(f"{FOLDER}/{path}", FOLDER) is True
    assert relative_to(f"{FOLDER}/{path}", FOLDER) == path


@given(relative_paths)
def test_plain_path_has_one_spelling_only(path: str) -> None:
    assert is_plain(path) is (posixpath.normpath(f"/x/{path}") == f"/x/{path}")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", True),
        ("north/a.jpg", True),
        ("new\nline/ü.jpg", True),
        ("..a/a..", True),
        ("...", True),
        (" ", True),
        ("", False),
        (".", False),
        ("..", False),
        ("/a", False),
        ("a/", False),
        ("a//b", False),
        ("a/./b", False),
        ("a/../b", False),
        ("a/..", False),
        ("a\0b", False),
    ],
)
def test_is_plain(path: str, expected: bool) -> None:
    assert is_plain(path) is expected


@pytest.mark.parametrize(
    ("url", "folder", "expected"),
    [
        ("s3://b/night/a.jpg", "s3://b/night", "a.jpg"),
        ("s3://b/night/a.jpg", "s3://b/night/", "a.jpg"),
        ("s3://b/night/x/y/a?b#c.jpg", "s3://b/night", "x/y/a?b#c.jpg"),
        ("file:///a.jpg", "file:///", "a.jpg"),
        ("s3://b/night", "s3://b/night", ""),
    ],
)
def test_relative_to(url: str, folder: str, expected: str) -> None:
    assert relative_to(url, folder) == expected


@pytest.mark.parametrize(
    ("url", "folder", "expected"),
    [
        ("s3://b/night/a.jpg", "s3://b/night", ["s3://b/night"]),
        (
            "s3://b/night/x/y/a.jpg",
            "s3://b/night",
            ["s3://b/night", "s3://b/night/x", "s3://b/night/x/y"],
        ),
        ("s3://b/x/a.jpg", "s3://b", ["s3://b", "s3://b/x"]),
        ("file:///mnt/x/a.jpg", "file:///mnt", ["file:///mnt", "file:///mnt/x"]),
        ("file:///mnt/a.jpg", "file:///", ["file:///", "file:///mnt"]),
    ],
)
def test_folders_between(url: str, folder: str, expected: list[str]) -> None:
    assert folders_between(url, folder) == expected


@given(plain_paths)
def test_folders_between_lead_from_one_to_the_other(path: str) -> None:
    folders = folders_between(f"{FOLDER}/{path}", FOLDER)
    assert folders[0] == FOLDER
    assert folders[-1] == f"{FOLDER}/{path}".rpartition("/")[0]
    for above, below in itertools.pairwise(folders):
        assert below.rpartition("/")[0] == above


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b", []),
        ("s3://b/night", ["s3://b"]),
        ("s3://b/2026/01/night", ["s3://b/2026/01", "s3://b/2026", "s3://b"]),
        ("file:///", []),
        ("file:///mnt", ["file:///"]),
        ("file:///mnt/2026/night", ["file:///mnt/2026", "file:///mnt", "file:///"]),
    ],
)
def test_parents_reach_up_to_the_root_or_the_bucket(url: str, expected: list[str]) -> None:
    assert parents_of(url) == expected


@given(plain_paths)
def test_parents_are_all_above(path: str) -> None:
    url = f"s3://bucket/{path}"
    parents = parents_of(url)
    assert len(parents) == len(path.split("/"))
    assert parents[-1] == "s3://bucket"
    for parent in parents:
        assert is_below(url, parent)
        assert url != parent


@pytest.mark.parametrize(
    ("partition_by", "partition"),
    [
        (None, ""),
        ("^([^/]+)/", "north"),
        ("^[^/]+", "north"),
        ("south", ""),
        ("cam-(\\d+)", "07"),
        ("(?:north|south)/(cam-\\d+)/(\\d)", "cam-07"),
        ("(south)?/", ""),
        ("Cam", ""),
        ("(?i)Cam", "cam"),
        ("(x*)north", ""),
    ],
)
def test_partition_of_a_path(partition_by: str | None, partition: str) -> None:
    assert partition_of("north/cam-07/2026.jpg", partition_by) == partition


@given(st.text(), st.sampled_from(["^([^/]+)/", "(a)|b", "x*", "(?P<camera>[0-9]+)"]))
def test_partition_is_a_part_of_the_path(path: str, partition_by: str) -> None:
    assert partition_of(path, partition_by) in path
    assert partition_of(path, None) == ""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/2026-01-01", "2026-01-01"),
        ("s3://bucket/night/", "night"),
        ("s3://bucket", "bucket"),
        ("file:///mnt/my images (new)", "my_images_new"),
        ("file:///mnt/été", "t"),
        ("file:///mnt/日本", "source"),
        ("file:///mnt/..hidden..", "hidden"),
        ("file:///" + "x" * 100, "x" * 40),
        ("file:///" + "x" * 39 + "..y", "x" * 39),
    ],
)
def test_slug_is_safe_in_any_path(url: str, expected: str) -> None:
    assert slug(url) == expected


@given(st.text(), st.sampled_from(["s3://bucket/", "file:///mnt/", ""]))
def test_slug_of_anything_is_safe_in_any_path(name: str, folder: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,38}[A-Za-z0-9-])?", slug(folder + name))
