"""Groups that people made, and which images of a run they are about."""

from pathlib import Path

import pytest

from tasks.errors import ArtifactError
from tasks.human_groups import find_named, read_groups
from tasks.runs import Run, open_run
from tests.made_runs import MadeRun, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    degrees = {"a/1.png": 0, "a/2.png": 5, "b/1.png": 90, "b/broken.png": 0}
    place = str(tmp_path_factory.mktemp("made"))
    return make_run(place, degrees, contents={"b/broken.png": b"no image"})


@pytest.fixture(scope="module")
def run(made: MadeRun) -> Run:
    return open_run(made.workspace_url, made.run_id)


def groups_of(tmp_path: Path, content: bytes) -> dict[str, str]:
    (tmp_path / "groups.csv").write_bytes(content)
    return read_groups(str(tmp_path / "groups.csv"))


def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    content = '\ufeffnote,group,path\r\nx,1,"a,b\n.jpg"\r\n,2,c.jpg\r\n'
    assert groups_of(tmp_path, content.encode()) == {"a,b\n.jpg": "1", "c.jpg": "2"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "expected a header line with path and group, found nothing"),
        (b"a.jpg,1\n", "expected a header line with path and group, found 'a.jpg', '1'"),
        (b"path,group\na.jpg\n", "line 2 has no path or no group"),
        (b"path,group\na.jpg,1\n,1\n", "line 3 has no path or no group"),
        (b"path,group\na.jpg,1\na.jpg,1\n", "line 3 names 'a.jpg' again"),
        (b'path,group\n"a.jpg,1\n', "no CSV after line 1"),
        (b"path,group\n\xff,1\n", "expected a CSV file in UTF-8"),
    ],
)
def test_what_is_no_table_of_groups_is_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        groups_of(tmp_path, content)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found nothing"):
        read_groups(str(tmp_path / "groups.csv"))
    with pytest.raises(ArtifactError, match="found a folder"):
        read_groups(str(tmp_path))


def test_images_are_named_by_path_url_or_place(run: Run, made: MadeRun) -> None:
    place = made.url("b/1.png").removeprefix("file://")
    named = find_named(run, {"b/broken.png": "y", place: "y", "a/2.png": "x", "a/9.png": "x"})
    assert run.images["url"].take(named.rows).to_pylist() == [
        made.url("a/2.png"),
        made.url("b/1.png"),
    ]
    assert named.groups.tolist() == [0, 1]
    assert (named.unreadable, named.unknown) == (("b/broken.png",), ("a/9.png",))
    assert named.num_unnamed == 1


def test_two_names_of_one_image_are_refused(run: Run, made: MadeRun) -> None:
    with pytest.raises(ArtifactError, match=r"'a/1\.png' has two names"):
        find_named(run, {"a/1.png": "x", made.url("a/1.png"): "x"})


def test_names_of_another_source_are_refused(run: Run) -> None:
    with pytest.raises(ArtifactError, match=r"none of the 1 names, such as 'x\.png'"):
        find_named(run, {"x.png": "x"})
    with pytest.raises(ArtifactError, match="none of the 0 names is"):
        find_named(run, {})
