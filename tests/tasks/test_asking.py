"""What an image resembles, where everybody's features are known. See also tests/flows."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import load_config
from tasks import storage, vgg16
from tasks.asking import Neighborhood, neighbors_of, propose, similarity
from tasks.errors import ArtifactError, EngineError, SourceError, UnreadableImageError
from tasks.looking_up import locate
from tasks.machine import Machine
from tasks.neighbors_page import pictures_of, publish_page, render_page
from tasks.runs import open_run, read_features
from tests.made_runs import FEATURES_OF_TESTS, MadeRun, make_run, picture

HOSTILE = "b/<img src=x onerror=alert(1)>\u202e'\".png"
DEGREES = {
    "a/0.png": 0,
    "a/1.png": 5,
    "a/copy.png": 0,
    "b/0.png": 60,
    HOSTILE: 62,
    "b/far.png": 170,
}

WITHOUT_RUN = {
    "source_url": "unused",
    "workspace_url": "unused",
    "features": FEATURES_OF_TESTS,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(
        str(tmp_path_factory.mktemp("made")), DEGREES, contents={"a/copy.png": picture(0)}
    )


def neighbors(made: MadeRun, image: str, **options: int) -> Neighborhood:
    return neighbors_of(image, run_id=made.run_id, workspace_url=made.workspace_url, **options)


def test_similarity_of_two_images_of_a_run(made: MadeRun) -> None:
    places = {"workspace_url": made.workspace_url, "run_id": made.run_id}
    answer = similarity("a/0.png", "1.png", **places)
    assert answer.percent == pytest.approx(100 * np.cos(np.deg2rad(5)), abs=1e-4)
    assert answer.distance == pytest.approx(1 - np.cos(np.deg2rad(5)), abs=1e-6)
    assert (answer.eps, answer.would_be_merged, answer.is_exact_copy) == (0.05, True, False)
    assert (answer.first.url, answer.second.url) == (made.url("a/0.png"), made.url("a/1.png"))
    assert (answer.first.origin, answer.second.origin) == ("run", "run")
    assert not similarity("a/0.png", "1.png", eps=0.003, **places).would_be_merged
    assert not similarity("a/0.png", "b/0.png", **places).would_be_merged


def test_exact_copies_are_said_to_be_copies(made: MadeRun) -> None:
    places = {"workspace_url": made.workspace_url, "run_id": made.run_id}
    answer = similarity("a/0.png", "a/copy.png", **places)
    assert (answer.is_exact_copy, answer.percent, answer.distance) == (True, 100.0, 0.0)


def test_workspace_knows_features_without_a_run(made: MadeRun) -> None:
    answer = similarity(
        made.url("a/0.png").removeprefix("file://"),
        made.url("b/0.png"),
        config=load_config(None, WITHOUT_RUN),
        workspace_url=made.workspace_url,
    )
    assert (answer.first.origin, answer.second.origin) == ("feature store", "feature store")
    assert answer.percent == pytest.approx(50.0, abs=1e-4)
    assert (answer.first.partition, answer.first.item_id) == (None, None)


def test_images_of_different_partitions_are_never_merged(tmp_path: Path) -> None:
    by_folder = {"partition_by": "^([^/]+)/"}
    made = make_run(str(tmp_path), {"a/0.png": 0, "b/0.png": 1, "b/1.png": 2}, source=by_folder)
    places = {"workspace_url": made.workspace_url, "run_id": made.run_id}
    apart = similarity("a/0.png", "b/0.png", **places)
    assert apart.distance < apart.eps
    assert (apart.first.partition, apart.second.partition) == ("a", "b")
    assert not apart.would_be_merged
    assert similarity("b/1.png", "b/0.png", **places).would_be_merged


def test_image_of_the_run_that_is_gone_is_the_one_that_the_run_saw(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 5})
    os.unlink(made.url("1.png").removeprefix("file://"))
    places = {"workspace_url": made.workspace_url, "run_id": made.run_id}
    answer = similarity("0.png", "1.png", **places)
    assert answer.second.origin == "run"
    assert answer.distance == pytest.approx(1 - np.cos(np.deg2rad(5)), abs=1e-6)


def test_what_changed_since_the_run_is_another_image(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 5})
    Path(made.url("1.png").removeprefix("file://")).write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match="cannot read the image: not an image"):
        neighbors(made, "1.png")


def test_stray_image_is_seen_as_the_images_of_the_run_are(tmp_path: Path) -> None:
    region = {"region": [0.0, 0.0, 0.5, 0.5]}
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 5}, view=region)
    half = Image.new("RGB", (40, 40), (255, 0, 0))
    half.paste((0, 0, 255), (0, 0, 20, 20))
    half.save(tmp_path / "half.png")
    Image.new("RGB", (40, 40), (0, 0, 255)).save(tmp_path / "blue.png")
    config = load_config(None, WITHOUT_RUN | {"view": region})

    stray, blue = str(tmp_path / "half.png"), str(tmp_path / "blue.png")

    assert similarity(stray, blue, config=config).distance == 0.0
    assert similarity(stray, blue, config=load_config(None, WITHOUT_RUN)).distance > 0.01
    assert neighbors(made, "0.png").image.origin == "run"
    assert neighbors(made, stray).neighbors[0].distance == pytest.approx(
        neighbors(made, blue).neighbors[0].distance, abs=1e-6
    )


def test_run_that_compares_scenes_answers_for_its_own_images_only(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 5}, view={"compare": "scene"})
    (tmp_path / "stray.png").write_bytes(picture(7))

    assert neighbors(made, "0.png").neighbors[0].url == made.url("1.png")
    with pytest.raises(SourceError, match="expected an image whose feature the run has"):
        neighbors(made, str(tmp_path / "stray.png"))


def test_frame_that_stands_on_another_is_looked_at_itself(tmp_path: Path) -> None:
    degrees = {"0.png": 0, "1.png": 5, "2.png": 5}
    made = make_run(str(tmp_path), degrees, stands_on={"1.png": "0.png"}, gate={"enabled": True})
    assert neighbors(made, "2.png").neighbors[0].distance > 0.003
    os.unlink(made.url("1.png").removeprefix("file://"))
    with pytest.raises(SourceError, match="found nothing"):
        neighbors(made, "1.png")


def test_run_and_workspace_may_be_on_any_store(place: str) -> None:
    made = make_run(place, {"a/0.png": 0, "a/1.png": 5, "b/0.png": 60})
    answer = neighbors(made, "a/0.png", k=2)
    assert [found.url for found in answer.neighbors] == [made.url("a/1.png"), made.url("b/0.png")]
    url = storage.join(made.workspace_url, "page.html")
    publish_page(url, answer, made.workspace_url)
    assert storage.read_bytes(url).count(b"data:image/jpeg") == 3
    asked = similarity(
        made.url("a/0.png"),
        made.url("a/1.png"),
        workspace_url=made.workspace_url,
        config=load_config(None, WITHOUT_RUN),
    )
    assert asked.second.origin == "feature store"


def test_nearest_images_come_first_without_the_image_itself(made: MadeRun) -> None:
    answer = neighbors(made, "a/0.png", k=4)
    urls = [made.url(path) for path in ("a/copy.png", "a/1.png", "b/0.png", HOSTILE)]
    assert [found.url for found in answer.neighbors] == urls
    expected = 1 - np.cos(np.deg2rad([0, 5, 60, 62]))
    assert [found.distance for found in answer.neighbors] == pytest.approx(expected, abs=1e-6)
    assert [found.is_within_eps for found in answer.neighbors] == [True, True, False, False]
    assert [found.is_exact_copy for found in answer.neighbors] == [True, False, False, False]
    decided = {found.url: found.action for found in answer.neighbors}
    manifest = open_run(made.workspace_url, made.run_id).manifest.table
    assert (
        decided.items()
        <= dict(
            zip(manifest["url"].to_pylist(), manifest["action"].to_pylist(), strict=True)
        ).items()
    )
    assert (answer.run_id, answer.eps, answer.image.origin) == (made.run_id, 0.05, "run")


def test_there_are_no_more_neighbours_than_other_images(made: MadeRun) -> None:
    assert len(neighbors(made, "a/0.png", k=100).neighbors) == 5
    assert len(neighbors(made, "a/0.png", k=100, search_k=10_000).neighbors) == 5
    assert len(neighbors(made, "a/0.png", k=1).neighbors) == 1


def test_image_is_meant_by_url_path_or_unique_name(made: MadeRun, tmp_path: Path) -> None:
    run = open_run(made.workspace_url, made.run_id)
    for name in (made.url("b/far.png"), "b/far.png", "far.png"):
        assert locate(name, run) == made.url("b/far.png")
    assert locate(made.url("b/far.png").removeprefix("file://"), run) == made.url("b/far.png")
    with pytest.raises(SourceError, match=r"found 2 called '0\.png', such as 'a/0\.png', 'b/0"):
        locate("0.png", run)
    assert locate(str(tmp_path / "0.png"), run) == f"file://{tmp_path}/0.png"
    assert locate("0.png", None) == f"file://{Path.cwd()}/0.png"


def test_no_image_and_a_folder_are_refused(made: MadeRun) -> None:
    with pytest.raises(SourceError, match=r"expected an image, found nothing: .*nowhere\.png"):
        neighbors(made, "nowhere.png")
    with pytest.raises(SourceError, match="found a folder or a device"):
        neighbors(made, made.source_url)


def test_run_without_images_has_no_index(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0}, contents={"0.png": b"no image"})
    run = open_run(made.workspace_url, made.run_id)
    with pytest.raises(ArtifactError, match="expected the index of a run, found none"):
        propose(run, np.zeros(512, np.float32), num_wanted=1, search_k=None)


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 1})
    index = Path(
        open_run(made.workspace_url, made.run_id).run_url.removeprefix("file://"), "index.ann"
    )
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"cannot read the index: .*index\.ann"):
        neighbors(made, "0.png")


def test_format_that_this_machine_lacks_is_refused_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FEATURES_OF_TESTS | {"dtype": "bfloat16"}
    made = make_run(str(tmp_path), {"0.png": 0, "1.png": 1}, features=features)
    other = tmp_path / "other.png"
    other.write_bytes(picture(9))
    monkeypatch.setattr(vgg16, "this_machine", lambda: Machine(frozenset()))
    assert len(neighbors(made, "0.png").neighbors) == 1
    with pytest.raises(
        EngineError, match=f"of run {made.run_id} cannot be computed here: bfloat16"
    ):
        neighbors(made, str(other))


def test_page_shows_pictures_and_escapes_names(made: MadeRun) -> None:
    answer = neighbors(made, "b/0.png", k=2)
    run = open_run(made.workspace_url, made.run_id)
    pictures = pictures_of([answer.image.url, *(found.url for found in answer.neighbors)], run)
    page = render_page(answer, pictures)
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "Content-Security-Policy" in page
    assert "no picture" in render_page(answer, {})


def test_picture_of_an_image_outside_of_the_run_is_made_of_itself(
    made: MadeRun, tmp_path: Path
) -> None:
    (tmp_path / "other.png").write_bytes(picture(5))
    other, nobody = f"file://{tmp_path}/other.png", f"file://{tmp_path}/nobody.png"
    run = open_run(made.workspace_url, made.run_id)
    assert list(pictures_of([other, nobody], run)) == [other]


def test_features_are_read_row_by_row(made: MadeRun) -> None:
    run = open_run(made.workspace_url, made.run_id)
    whole = np.load(storage.local_path(run.features_url))
    assert (read_features(run.features_url, [4, 0]) == whole[[4, 0]]).all()
    with pytest.raises(ArtifactError, match="expected features of 1 items"):
        read_features(run.features_url, [6])
    with pytest.raises(ArtifactError, match="found nothing"):
        read_features(f"{run.features_url}.gone", [0])


def test_images_of_another_manifest_are_refused(tmp_path: Path) -> None:
    made = make_run(str(tmp_path / "1"), {"0.png": 0, "1.png": 1})
    other = make_run(str(tmp_path / "2"), {"0.png": 0, "1.png": 1})
    theirs = open_run(other.workspace_url, other.run_id).run_url
    mine = open_run(made.workspace_url, made.run_id).run_url
    images = storage.read_bytes(storage.join(theirs, "images.parquet"))
    storage.publish_bytes(storage.join(mine, "images.parquet"), images)
    with pytest.raises(ArtifactError, match="expected the 2 images of the manifest, found others"):
        open_run(made.workspace_url, made.run_id)
