"""The commands `dedup similarity` and `dedup neighbors`: what they print and how they end."""

import json
import os
from pathlib import Path

import pytest

from tests.flows.test_cli_acting import dedup
from tests.made_runs import MadeRun, make_run, picture

FILES = {"a/0.png": 0, "a/1.png": 5, "b/0.png": 60, "b/\n\x1b[31m.png": 63}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(str(tmp_path_factory.mktemp("made")), FILES)


@pytest.fixture
def of_run(made: MadeRun) -> tuple[str, ...]:
    return ("--run", made.run_id, "--workspace", made.workspace_url)


def test_similarity_is_said_in_percent_with_a_verdict(
    made: MadeRun, of_run: tuple[str, ...]
) -> None:
    status, stdout, _ = dedup("similarity", "a/0.png", "a/1.png", *of_run)
    lines = dict(line.split("  ", 1) for line in stdout.splitlines())
    assert status == 0
    assert lines["similarity"].strip() == "99.62 %"
    assert lines["cosine distance"].strip() == "0.003805"
    assert lines["would be merged"].strip() == "yes, at eps 0.05"
    assert lines["first"].strip() == f"{made.url('a/0.png')} (run)"
    stdout = dedup("similarity", "a/0.png", "a/1.png", "--eps", "0.003", *of_run)[1]
    assert "would be merged  no, at eps 0.003\n" in stdout


def test_similarity_as_json(made: MadeRun, of_run: tuple[str, ...]) -> None:
    status, stdout, _ = dedup("similarity", "a/0.png", made.url("b/0.png"), "--json", *of_run)
    answer = json.loads(stdout)
    assert status == 0
    assert answer["percent"] == pytest.approx(50, abs=1e-4)
    assert (answer["would_be_merged"], answer["is_exact_copy"], answer["eps"]) == (
        False,
        False,
        0.05,
    )
    assert answer["second"]["url"] == made.url("b/0.png")


def test_neighbours_are_one_line_each_whatever_their_names(
    made: MadeRun, of_run: tuple[str, ...]
) -> None:
    status, stdout, _ = dedup("neighbors", "b/0.png", "-k", "2", *of_run)
    nearest, second = stdout.splitlines()[-2:]
    assert status == 0
    assert nearest.split()[:4] == ["99.86", "%", "0.001370", "yes"]
    assert nearest.endswith(r"b/\n\x1b[31m.png'")
    assert second.endswith(made.url("a/1.png"))


def test_page_and_json_of_neighbours(
    made: MadeRun, of_run: tuple[str, ...], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    arguments = ("-k", "3", "--search-k", "1000", "--html", str(page), "--json")
    status, stdout, _ = dedup("neighbors", "0.png", *of_run, *arguments)
    assert (status, page.exists()) == (1, False)  # there are two images of that name
    status, stdout, _ = dedup("neighbors", "a/0.png", *of_run, *arguments)
    answer = json.loads(stdout)
    assert status == 0
    assert [found["url"] for found in answer["neighbors"]][:2] == [
        made.url("a/1.png"),
        made.url("b/0.png"),
    ]
    assert page.read_text().count("<img src=") == 4


def test_image_from_elsewhere_is_embedded_as_the_run_was(
    made: MadeRun, of_run: tuple[str, ...], tmp_path: Path
) -> None:
    for number in (0, 7):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    copy = str(tmp_path / "0.png")
    stdout = dedup("similarity", copy, str(tmp_path / "7.png"), "--json", *of_run)[1]
    answer = json.loads(stdout)
    assert answer["first"]["origin"] == answer["second"]["origin"] == "embedded now"
    assert 0 < answer["distance"] < 1
    stdout = dedup("similarity", copy, copy, "--json")[1]
    assert json.loads(stdout)["distance"] == 0
    stdout = dedup("neighbors", copy, "-k", "4", "--json", *of_run)[1]
    copies = [found["is_exact_copy"] for found in json.loads(stdout)["neighbors"]]
    assert sorted(copies) == [False, False, False, True]
    no_text = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(no_text).write_bytes(picture(0))
    status, stdout, _ = dedup("similarity", no_text, copy, *of_run)
    assert status == 0
    assert r"/\udcff.png (embedded now)" in stdout
    (tmp_path / "broken.png").write_bytes(picture(0)[:40])
    status, _, stderr = dedup("neighbors", str(tmp_path / "broken.png"), *of_run)
    assert status == 1
    assert stderr.startswith("error: cannot read the image: ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("similarity", "a", "b", "--run", "r"), "--run needs its --workspace"),
        (
            ("similarity", "a", "b", "--run", "r", "--workspace", "w", "--config", "c.yaml"),
            "--run and --config exclude each other",
        ),
        (("similarity", "a", "b", "--config", "no-such.yaml"), "cannot read config no-such.yaml"),
        (("similarity", "s3://key:secret@bucket/a", "b"), "the URL carries credentials"),
        (("similarity", "a", "b", "--eps", "2"), "--eps"),
        (("neighbors", "a", "--run", "r", "--workspace", "w", "-k", "0"), "-k"),
    ],
)
def test_wrong_usage_is_told_apart(arguments: tuple[str, ...], complaint: str) -> None:
    status, stdout, stderr = dedup(*arguments)
    assert (status, stdout) == (2, "")
    assert complaint in stderr
    assert "secret" not in stderr


def test_what_is_not_there_is_one_clear_error(of_run: tuple[str, ...], tmp_path: Path) -> None:
    status, _, stderr = dedup("neighbors", "nowhere.png", *of_run)
    assert status == 1
    assert stderr.startswith("error: expected an image, found nothing: ")
    status, _, stderr = dedup("neighbors", "a", "--run", "none", "--workspace", str(tmp_path))
    assert status == 1
    assert "expected a Parquet file, found nothing" in stderr
