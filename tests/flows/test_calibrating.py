"""`dedup calibrate`: what is asked, what is kept, and what may ask for it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flows.calibrating import AskedPair, Interview, calibration_server, prepare
from tasks import storage
from tasks.calibrations import Calibration, calibration_url, read_calibration
from tasks.errors import ArtifactError
from tasks.manifests import read_manifest
from tasks.originals import Originals
from tests.flows.test_cli import dedup
from tests.flows.test_serving import origin, running, visiting
from tests.written_runs import WrittenRun, made_scenes, write_run

PAIRS = [AskedPair(f"a{number}", f"b{number}", "", 0.05) for number in range(5)]


def interview(
    kept: list[Calibration],
    *,
    earlier: Calibration | None = None,
    is_shown: Callable[[str], bool] = lambda _: True,
    num_pairs: int = 3,
) -> Interview:
    return Interview(
        earlier or Calibration(run_id="night", eps=0.05, partitions=()),
        iter(PAIRS),
        num_pairs=num_pairs,
        is_shown=is_shown,
        keep=kept.append,
    )


def asked(interview: Interview) -> list[str]:
    return [pair.a for pair in interview.questions()]


def test_each_answer_is_kept_before_the_next_question() -> None:
    kept: list[Calibration] = []
    asking = interview(kept)
    assert asked(asking) == ["a0", "a1"]
    assert asking.answer("a0", "b0", "same")
    assert [(answer.a, answer.said) for answer in kept[-1].answers] == [("a0", "same")]
    assert asked(asking) == ["a1", "a2"]
    assert asking.answer("a1", "b1", "different")
    assert asked(asking) == ["a2"]
    assert asking.answer("a2", "b2", "unsure")
    assert asked(asking) == []
    assert [answer.said for answer in kept[-1].answers] == ["same", "different", "unsure"]


def test_an_answer_to_another_question_is_not_taken() -> None:
    kept: list[Calibration] = []
    asking = interview(kept)
    assert asking.answer("a0", "b0", "same")
    assert not asking.answer("a0", "b0", "same")
    assert not asking.answer("a2", "b2", "same")
    assert not asking.answer("b1", "a1", "same")
    assert len(kept) == 1


def test_an_answer_that_cannot_be_kept_is_asked_again() -> None:
    def fail(_: Calibration) -> None:
        raise OSError("no space left")

    asking = interview([])
    asking._keep = fail
    with pytest.raises(OSError, match="no space"):
        asking.answer("a0", "b0", "same")
    assert asked(asking) == ["a0", "a1"]
    assert asking.calibration.answers == ()


def test_back_asks_the_last_pair_again_as_often_as_wanted() -> None:
    kept: list[Calibration] = []
    asking = interview(kept)
    asking.take_back()
    assert (asked(asking), kept) == (["a0", "a1"], [])
    for number in range(3):
        asking.answer(f"a{number}", f"b{number}", "same")
    asking.take_back()
    asking.take_back()
    assert asked(asking) == ["a1", "a2"]
    assert len(kept[-1].answers) == 1
    asking.answer("a1", "b1", "different")
    assert [answer.said for answer in kept[-1].answers] == ["same", "different"]


def test_it_goes_on_where_it_ended_and_leaves_out_what_cannot_be_shown() -> None:
    kept: list[Calibration] = []
    first = interview(kept)
    first.answer("a0", "b0", "same")
    again = interview(kept, earlier=kept[-1], is_shown=lambda url: url not in ("a1", "b2"))
    assert asked(again) == ["a3", "a4"]
    again.answer("a3", "b3", "same")
    again.answer("a4", "b4", "same")
    assert asked(again) == []
    assert [answer.a for answer in kept[-1].answers] == ["a0", "a3", "a4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    features = made_scenes("north", 4, 5, seed=1) | made_scenes("south", 4, 5, seed=2)
    return write_run(str(tmp_path_factory.mktemp("run")), features)


def test_answers_come_only_from_a_page_of_this_server(place: str) -> None:
    run = write_run(place, made_scenes("north", 4, 5, seed=1))
    manifest = read_manifest(run.manifest_url)
    originals = Originals(manifest)
    asking = prepare(manifest, 2, originals)
    server = calibration_server(asking, manifest, originals, precision=0.99, port=0)
    with running(server), visiting(server) as visitor:
        state = visitor.get("/state").json()
        assert (state["num_answers"], state["num_pairs"], state["result"]) == (0, 2, None)
        first = state["questions"][0]
        assert first["a"]["path"].startswith("north/scene")
        assert "distance" not in json.dumps(state)
        assert visitor.get(first["a"]["src"]).headers["content-type"] == "image/jpeg"
        reply = {"said": "same", "a": first["a"]["url"], "b": first["b"]["url"]}
        headers = {"Origin": origin(server)}
        assert visitor.put("/answer", json=reply).status_code == 403
        for wrong in (b"", b"[]", b'{"said": "perhaps"}', b'{"said": "same", "extra": 1}'):
            answer = visitor.put("/answer", content=wrong, headers=headers)
            assert answer.status_code == 422
        assert visitor.put("/answer", content=b" " * 70_000, headers=headers).status_code == 413
        assert not storage.exists(calibration_url(run.manifest_url))

        assert visitor.put("/answer", json=reply, headers=headers).json()["num_answers"] == 1
        assert visitor.put("/answer", json=reply, headers=headers).json()["num_answers"] == 1
        kept = read_calibration(calibration_url(run.manifest_url))
        assert [answer.said for answer in kept.answers] == ["same"]
        page = visitor.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert (visitor.get("/calibrate.js").status_code, visitor.get("/x.js").status_code) == (
            200,
            404,
        )


def test_both_partitions_are_asked_about_and_the_order_is_always_the_same(run: WrittenRun) -> None:
    manifest = read_manifest(run.manifest_url)
    orders = []
    for num_pairs in (12, 20):
        asking = prepare(manifest, num_pairs, Originals(manifest))
        asking._keep = lambda _: None
        while questions := asking.questions():
            asking.answer(questions[0].a, questions[0].b, "same")
        orders.append([(answer.a, answer.b) for answer in asking.calibration.answers])
        partitions = [answer.partition for answer in asking.calibration.answers]
        assert partitions.count("north") == partitions.count("south") == num_pairs / 2
        assert all(a < b for a, b in orders[-1])
    assert orders[0] == orders[1][:12]


def test_cameras_with_an_eps_of_their_own_are_not_asked_about(run: WrittenRun) -> None:
    manifest = read_manifest(run.manifest_url)

    def asked_about(*patterns: str, compare: str = "image") -> set[str]:
        cameras = [{"pattern": pattern, "eps": 0.01} for pattern in patterns]
        said = {"cameras": cameras, "view": {"compare": compare}}
        metadata = manifest.metadata | {"config": json.dumps(said)}
        asking = prepare(replace(manifest, metadata=metadata), 20, Originals(manifest))
        assert asking.calibration.setting == ("eps" if compare == "image" else "scene_eps")
        return {partition.name for partition in asking.calibration.partitions}

    assert asked_about("nowhere") == {"north", "south"}
    assert asked_about("^north$") == {"south"}
    assert asked_about("^north$", compare="scene") == {"south"}
    with pytest.raises(ArtifactError, match="but all cameras have one of their own"):
        asked_about("north", "south")


def test_pairs_whose_picture_is_gone_are_left_out(tmp_path: Path) -> None:
    run = write_run(str(tmp_path), made_scenes("north", 3, 3, seed=1))
    gone = run.url("north/scene00-00.jpg")
    Path(gone.removeprefix("file://")).unlink()
    manifest = read_manifest(run.manifest_url)
    asking = prepare(manifest, 1_000, Originals(manifest))
    seen = set()
    while questions := asking.questions():
        seen |= {questions[0].a, questions[0].b}
        asking.answer(questions[0].a, questions[0].b, "same")
    assert len(seen) == 8
    assert gone not in seen


def test_a_run_without_pairs_and_strange_answers_are_named(tmp_path: Path) -> None:
    lonely = write_run(str(tmp_path / "lonely"), made_scenes("north", 1, 1, seed=1))
    manifest = read_manifest(lonely.manifest_url)
    with pytest.raises(ArtifactError, match=r"expected pairs of images about 0\.05 apart"):
        prepare(manifest, 40, Originals(manifest))

    run = write_run(str(tmp_path / "run"), made_scenes("north", 3, 3, seed=1))
    manifest = read_manifest(run.manifest_url)
    asking = prepare(manifest, 40, Originals(manifest))
    of_another = asking.calibration.model_copy(update={"run_id": "another"})
    url = calibration_url(run.manifest_url)
    storage.publish_bytes(url, of_another.model_dump_json().encode())
    with pytest.raises(ArtifactError, match="expected answers about run night-0123456789abcdef"):
        prepare(manifest, 40, Originals(manifest))


def test_command_prints_again_what_follows_from_answers(run: WrittenRun, tmp_path: Path) -> None:
    manifest = read_manifest(run.manifest_url)
    asking = prepare(manifest, 40, Originals(manifest))
    path = tmp_path / "calibration.json"
    asking._keep = lambda calibration: path.write_text(calibration.model_dump_json())
    while questions := asking.questions():
        a, b, *_ = questions[0]
        is_same = a.rpartition("-")[0] == b.rpartition("-")[0]
        asking.answer(a, b, "same" if is_same else "different")

    printed = dedup("calibrate", "--answers", path, "--precision", 0.9)
    assert printed.returncode == 0, printed.stderr
    assert "eps for 90 %     0.0" in printed.stdout
    lines = printed.stdout.rpartition("\n\n")[2]
    result = json.loads(dedup("calibrate", "--answers", path, "--precision", 0.9, "--json").stdout)
    assert lines == f"neighbors:\n  eps: {result['suggested']['eps']}\n"
    assert result["num_answers"] == 40


def test_wrong_usage_is_explained(run: WrittenRun, tmp_path: Path) -> None:
    assert dedup("calibrate").returncode == 2
    both = dedup("calibrate", "--run", run.manifest_url, "--answers", "x.json")
    assert (both.returncode, "either --run or --answers" in both.stderr) == (2, True)
    assert dedup("calibrate", "--run", "night-0123").returncode == 2
    missing = dedup("calibrate", "--answers", tmp_path / "none.json")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
