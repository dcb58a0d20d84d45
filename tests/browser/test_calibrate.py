"""A person at the keyboard: calibrates a run in a real browser."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from tasks.calibrations import CalibrationResult, calibration_url, read_calibration
from tasks.distances import cosine_distances
from tests.flows.test_cli import DEDUP
from tests.written_runs import WrittenRun, made_scenes, write_run

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202e"


@contextmanager
def calibrating(run: WrittenRun, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, and the address that it prints."""
    with subprocess.Popen(
        [DEDUP, "calibrate", "--run", run.manifest_url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "500"},
    ) as process:
        assert process.stderr is not None
        try:
            while not (line := process.stderr.readline()).startswith("Answer here: "):
                assert line, "the command has ended"
            yield process, line.split()[-1]
        finally:
            process.terminate()


def answer_from_labels(page: Page) -> None:
    """Answer as the names of the files say: what is before the dash is the scene."""
    a, b = (page.locator(f"#side-{side} bdi").inner_text() for side in "ab")
    press(page, "y" if a.rpartition("-")[0] == b.rpartition("-")[0] else "n")


def press(page: Page, key: str) -> None:
    before = page.locator("#count").inner_text()
    page.keyboard.press(key)
    expect(page.locator("#count")).not_to_have_text(before)


def precision_within(features: dict[str, NDArray[np.float32]], eps: float) -> float:
    """Share of the pairs within eps that are of one scene."""
    scenes = np.array([name.rpartition("-")[0] for name in features])
    matrix = np.array([*features.values()])
    i, j = np.triu_indices(len(matrix), 1)
    is_within = cosine_distances(matrix[i], matrix[j]) <= eps
    return float((scenes[i] == scenes[j])[is_within].mean())


def test_answers_from_labels_give_an_eps_that_keeps_its_promise_elsewhere(
    page: Page, tmp_path: Path
) -> None:
    one_half = made_scenes("north", 20, 6, seed=1)
    other_half = made_scenes("north", 20, 6, seed=2)
    run = write_run(str(tmp_path), one_half)
    with calibrating(run, "--precision", "0.95", "--json") as (process, url):
        page.goto(url)
        assert page.url == f"{url.partition('?')[0]}"
        for number in range(40):
            expect(page.locator("#count")).to_have_text(f"{number} of 40")
            answer_from_labels(page)
        expect(page.locator("#title")).to_have_text("What follows from your answers")
        assert page.locator("#rows tr").first.inner_text() == "run\tnight-0123456789abcdef"
        lines = page.locator("#lines").inner_text()
        page.keyboard.press("Enter")
        expect(page.locator("#ended")).to_be_visible()
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    result = CalibrationResult.model_validate_json(printed)
    suggested = result.suggested
    assert suggested is not None
    assert lines == f"neighbors:\n  eps: {suggested.eps:g}\n"
    assert suggested.precision >= 0.95
    assert precision_within(one_half, 0.2) < 0.5
    assert suggested.low <= precision_within(one_half, suggested.eps)
    assert suggested.low <= precision_within(other_half, suggested.eps)
    assert precision_within(other_half, suggested.eps) > 0.9
    # And no smaller than it must be: half as far again, and the promise is broken.
    assert precision_within(other_half, 1.5 * suggested.eps) < 0.95


def test_closed_browser_goes_on_and_back_and_flick_work(page: Page, tmp_path: Path) -> None:
    features = {
        name.replace("north/", f"north{HOSTILE}/"): feature
        for name, feature in made_scenes("north", 3, 4, seed=1).items()
    }
    run = write_run(str(tmp_path), features)
    with calibrating(run, "--pairs", "4") as (_, url):
        # As from a terminal in the browser: the link is on a page of another site.
        page.set_content(f'<a href="{url}">Answer here</a>')
        page.locator("a").click()
        expect(page.locator("#side-a bdi")).to_contain_text(HOSTILE)
        assert page.url == url.partition("?")[0]
        images = page.locator(".sides img")
        for number in range(2):
            expect(images.nth(number)).to_have_js_property("naturalWidth", 64)
        first = page.locator("#side-a bdi").inner_text()
        expect(page.locator("#back")).to_be_disabled()

        for shown, hidden in (("a", "b"), ("b", "a"), ("a", "b")):
            page.keyboard.press("f")
            expect(page.locator(f"#side-{shown}")).to_be_visible()
            expect(page.locator(f"#side-{hidden}")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page.locator("#side-b")).to_be_visible()

        press(page, "y")
        press(page, "b")
        assert page.locator("#side-a bdi").inner_text() == first
        page.locator("#different").click()
        expect(page.locator("#count")).to_have_text("1 of 4")
        press(page, "u")
    kept = read_calibration(calibration_url(run.manifest_url))
    assert [answer.said for answer in kept.answers] == ["different", "unsure"]

    with calibrating(run, "--pairs", "4") as (process, url):
        page.set_viewport_size({"width": 390, "height": 780})
        page.goto(url)
        expect(page.locator("#count")).to_have_text("2 of 4")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        press(page, "n")
        press(page, "n")
        expect(page.locator("#result")).to_be_visible()
        page.locator("#done").click()
        expect(page.locator("#ended")).to_be_visible()
        printed, _ = process.communicate(timeout=30)
    assert (process.returncode, "0 same, 3 different, 1 unsure" in printed) == (0, True)
    assert json.loads(kept.model_dump_json())["format"] == "image-dedup calibration 1"
