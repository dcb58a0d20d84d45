"""The whole circle: a night, a person in the browser, a new manifest, and the night after."""

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from config import load_config
from flows.dedup import dedup
from flows.reviewing import review_manifest
from tasks import storage
from tasks.summary import Summary
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(source: Path, workspace: Path) -> Summary:
    features = {"image_size": 112, "dtype": "float32"}
    said = {"source_url": str(source), "workspace_url": str(workspace), "features": features}
    return dedup(load_config(None, said))


def decisions(manifest_url: str) -> dict[str, tuple[str, str]]:
    """Action and reason of each image."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(manifest_url)))
    return {
        "/".join(row["url"].split("/")[-2:]): (row["action"], row["reason"])
        for row in table.to_pylist()
    }


def test_what_a_person_marks_holds_now_and_on_the_next_night(
    night: Night, tmp_path: Path, page: Page
) -> None:
    source, workspace = tmp_path / "source", tmp_path / "workspace"
    for camera in ("junction-1", "junction-2"):
        shutil.copytree(night.folder / camera, source / camera)
    first = run(source, workspace)
    page.goto(first.report_url)

    page.keyboard.press("/")
    page.keyboard.type("junction-1/003")
    expect(page.locator("#count")).to_have_text("1 of 2 groups")
    page.locator(".card.remove").filter(has_text="003.jpg").locator(".picture").click()
    page.keyboard.press("Space")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    page.locator("#filter").fill("")
    other = page.locator("[data-group]").filter(has_text="junction-2")
    other.get_by_role("button", name="Keep all").click()
    expect(page.locator("#marks")).to_have_text("2 marks")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save review.json").click()
    reviewed = review_manifest(first.manifest_url, str(download.value.path()))
    # The night after brings one frame more of the first camera.
    shutil.copy2(night.folder / "junction-3/000.jpg", source / "junction-1/new.jpg")
    second = run(source, workspace)

    before, after = decisions(first.manifest_url), decisions(reviewed.manifest_url)
    assert before["junction-1/003.jpg"] == ("remove", "within eps")
    assert {name: said for name, said in after.items() if said != before[name]} == {
        "junction-1/003.jpg": ("keep", "reviewed: not a duplicate"),
        **{f"junction-2/00{n}.jpg": ("keep", "reviewed: keep all") for n in range(5)},
    }
    held = {name: action for name, (action, _) in decisions(second.manifest_url).items()}
    assert held == {name: action for name, (action, _) in after.items()} | {
        "junction-1/new.jpg": "keep"
    }
