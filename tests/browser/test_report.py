"""The report as a person sees it: opened from the disk, clicked through, with hostile names."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from tasks import storage
from tasks.stage10_write_report import make_report
from tests.written_reports import WrittenRun, jpeg, write_run

HOSTILE = {
    "markup": "<img src=x onerror=alert(1)>.jpg",
    "quotes": "\"'`);alert(1);.jpg",
    "template": "{{7*7}}${alert(1)}%00&lt;.jpg",
    "right to left": "\u202egpj.\u202cphoto\u200f.jpg",
    "long": "x" * 251 + ".jpg",
    "newline": "two\nlines\u2028.jpg",
    "script": "<!--<script>alert(1)<\\script>.jpg",
    "address": "50%#a?b&c=d\\e.jpg",
}


def publish(run: WrittenRun) -> str:
    """Write the report of a run; gives the URL of its page."""
    return make_report(run.manifest, run.config, 0, {}).report_url


def report_of(place: Path, groups: Mapping[str, Mapping[str, float]], **values: object) -> str:
    return publish(write_run(str(place), groups, **values))


def two_cameras() -> dict[str, dict[str, float]]:
    return {
        "east/a.jpg": {"east/b.jpg": 0.03125, "east/c.jpg": 0.0},
        "west/k.jpg": {f"west/{number:02}.jpg": 0.001 * number for number in range(1, 31)},
        "west/p.jpg": {"west/q.jpg": 0.04},
    }


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder behind a plain static host that also takes files and has one original."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/original?"):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(jpeg())

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            (folder / self.path.lstrip("/")).write_bytes(content)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_groups_show_from_the_disk_largest_first(page: Page, tmp_path: Path) -> None:
    url = report_of(tmp_path, two_cameras())
    started = time.perf_counter()
    page.goto(url)
    expect(page.locator(".card img").first).to_be_visible()
    print(f"first picture after {time.perf_counter() - started:.2f} s")
    expect(page.locator("h3")).to_have_text(["Group 1", "Group 0", "Group 2"])
    expect(page.locator("#missing")).to_have_count(0)
    first = page.locator("[data-group]").first
    expect(first.locator(".about")).to_have_text(
        "31 images: 1 kept, 30 removed, weakest 97.00 % · west"
    )
    expect(first.locator(".card")).to_have_count(13)
    expect(first.locator(".card.keep .say")).to_have_text(["keeper"])
    expect(first.locator(".card.remove .say b").first).to_have_text("97.00 %")


def test_person_filters_opens_a_pair_flicks_marks_and_saves(page: Page, tmp_path: Path) -> None:
    run = write_run(str(tmp_path), two_cameras())
    source = Path(run.source_url.removeprefix("file://"), "east")
    source.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (source / name).write_bytes(jpeg(200, (64, 48)))
    page.goto(publish(run))

    page.keyboard.press("/")
    page.keyboard.type("EAST/B")
    expect(page.locator("#count")).to_have_text("1 of 3 groups")
    expect(page.locator("h3")).to_have_text(["Group 0"])
    page.locator(".card.remove .picture").first.focus()
    page.keyboard.press("Enter")

    pair = page.locator("#pair")
    expect(pair.locator("#pair-title")).to_have_text(
        "96.88 % alike · within eps · 1 of 2 in group 0"
    )
    expect(pair.locator("tr").first).to_have_text("patheast/a.jpgeast/b.jpg")
    for name in ("a.jpg", "b.jpg"):
        image = pair.get_by_alt_text(name)
        expect(image).to_have_attribute("src", f"{run.source_url}/east/{name}")
        assert image.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 64
    keeper, goes = pair.locator("figure.keep"), pair.locator("figure.remove")
    expect(keeper).to_be_visible()
    expect(goes).to_be_visible()
    page.keyboard.press("Space")
    expect(keeper).to_be_hidden()
    expect(goes).to_be_visible()
    page.keyboard.press("Space")
    expect(keeper).to_be_visible()
    expect(goes).to_be_hidden()

    page.keyboard.press("d")
    page.keyboard.press("ArrowRight")
    expect(pair.locator("#pair-title")).to_have_text(
        "100.00 % alike · exact copy · 2 of 2 in group 0"
    )
    pair.get_by_role("button", name="Keep this one").click()
    page.keyboard.press("Escape")
    expect(pair).to_be_hidden()
    page.locator("#filter").fill("")
    page.locator("[data-group]").nth(2).get_by_role("button", name="Remove all").click()

    expect(page.locator("#marks")).to_have_text("3 marks")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save review.json").click()
    assert download.value.suggested_filename == "review.json"
    metadata = storage.read_metadata(run.manifest.url)
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8")) == {
        "format": "image-dedup review 1",
        "run_id": "night-0123456789abcdef",
        "manifest_digest": metadata["digest"],
        "choices": [
            {"choice": "not a duplicate", "url": f"{run.source_url}/east/b.jpg"},
            {"choice": "keep this one", "url": f"{run.source_url}/east/c.jpg"},
            {"choice": "remove all", "cluster_id": 2},
        ],
    }
    expect(page.locator("#marks")).to_have_text("3 marks, saved")


def test_marks_stay_in_the_browser_and_can_be_taken_back(page: Page, tmp_path: Path) -> None:
    page.goto(report_of(tmp_path, two_cameras()))
    card = page.locator(".card.remove").first
    card.get_by_role("button", name="not a duplicate").click()
    page.locator("[data-group]").nth(1).get_by_role("button", name="Keep all").click()
    page.reload()
    expect(page.locator("#marks")).to_have_text("2 marks")
    expect(card.get_by_role("button", name="not a duplicate")).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.locator("[data-group]").nth(1).locator(".card.remove.stays")).to_have_count(2)
    page.locator("#marked").check()
    expect(page.locator("#count")).to_have_text("2 of 3 groups")
    card.locator(".picture").focus()
    page.keyboard.press("d")
    expect(page.locator("#count")).to_have_text("2 of 3 groups")
    expect(page.locator("#marks")).to_have_text("1 mark")
    page.locator("[data-group]").nth(1).get_by_role("button", name="Keep all").click()
    expect(page.locator("#review")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("3 groups")


def test_sorting_and_partitions(page: Page, tmp_path: Path) -> None:
    page.goto(report_of(tmp_path, two_cameras()))
    page.locator("#sort").select_option("risk")
    expect(page.locator("h3")).to_have_text(["Group 2", "Group 0", "Group 1"])
    page.locator("#sort").select_option("partition")
    expect(page.locator("h3")).to_have_text(["Group 0", "Group 1", "Group 2"])
    page.locator("#partition").select_option(label="west")
    expect(page.locator("h3")).to_have_text(["Group 1", "Group 2"])
    page.locator("#filter").fill("nothing like it")
    expect(page.locator("#count")).to_have_text("0 of 3 groups")


def test_keys_walk_through_cards_groups_and_pairs(page: Page, tmp_path: Path) -> None:
    page.goto(report_of(tmp_path, two_cameras(), source_url="s3://bucket/night"))
    page.locator(".card.keep .picture").first.focus()
    for key, name in [("ArrowRight", "30.jpg"), ("ArrowRight", "29.jpg"), ("ArrowDown", "a.jpg")]:
        page.keyboard.press(key)
        expect(page.locator(".card:focus-within bdi.name")).to_have_text(name)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#pair-title")).to_contain_text("1 of 2 in group 0")
    for place in ("2 of 2 in group 0", "1 of 1 in group 2"):
        page.keyboard.press("ArrowRight")
        expect(page.locator("#pair-title")).to_contain_text(place)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#pair-title")).to_contain_text("2 of 2 in group 0")
    page.keyboard.press("Escape")
    expect(page.locator(".card:focus-within bdi.name")).to_have_text("c.jpg")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def test_all_images_of_a_group_are_one_click_away(page: Page, tmp_path: Path) -> None:
    page.goto(report_of(tmp_path, two_cameras()))
    page.get_by_role("button", name="All 31 images").click()
    names = page.locator("#whole bdi.name")
    expect(names.first).to_have_text("k.jpg")
    page.locator("#whole").evaluate("(dialog) => dialog.scrollTo(0, dialog.scrollHeight)")
    expect(names.last).to_have_text("01.jpg")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_names_are_text_and_break_nothing(page: Page, tmp_path: Path, name: str) -> None:
    keeper = f"{name[1:-5]}k.jpg"
    run = write_run(
        str(tmp_path), {keeper: {name: 0.01}}, unreadable={f"z{name[2:]}": f"unreadable: {name}"}
    )
    source = Path(run.source_url.removeprefix("file://"))
    source.mkdir()
    for shade, path in enumerate((keeper, name)):
        (source / path).write_bytes(jpeg(shade, (32, 24)))
    page.goto(publish(run))
    shown = page.locator(".card.remove bdi.name")
    expect(shown).to_have_count(1)
    assert shown.evaluate("(shown) => shown.textContent") == name
    page.locator(".card.remove .picture").click()
    image = page.locator("#pair figure.remove img")
    address = "file://" + quote(os.fspath(source / name), safe="/~()*!.'-_")
    expect(image).to_have_attribute("src", address)
    assert image.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 32
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.keyboard.press("s")
    (choice,) = json.loads(Path(download.value.path()).read_bytes())["choices"]
    assert choice == {"choice": "not a duplicate", "url": f"{run.source_url}/{name}"}
    page.locator('a[href="#unreadable"]').click()
    reason = page.locator("#unreadable td").first
    assert reason.evaluate("(cell) => cell.textContent") == f"unreadable: {name}"


@pytest.mark.parametrize(
    ("source_url", "note"),
    [
        ("s3://bucket/night", "Goes · its thumbnail; dedup serve shows the image itself"),
        ("file:///gone", "Goes · the image itself cannot be shown here: its thumbnail"),
    ],
)
def test_image_that_cannot_be_reached_shows_as_its_thumbnail(
    browser: Browser, tmp_path: Path, source_url: str, note: str
) -> None:
    page = browser.new_page()
    page.goto(report_of(tmp_path, two_cameras(), source_url=source_url))
    page.locator(".card.remove .picture").first.click()
    expect(page.locator("#pair figure.remove figcaption")).to_have_text(note)
    expect(page.locator("#pair figure.remove img")).to_have_attribute("src", A_JPEG)
    page.close()


A_JPEG = re.compile("^data:image/jpeg;base64,")


def test_piece_that_is_missing_is_named_and_the_rest_shows(
    browser: Browser, tmp_path: Path
) -> None:
    groups = {"k": {f"{number:02}": 0.0 for number in range(60)}, "x": {"y": 0.01}}
    url = report_of(tmp_path, groups)
    Path(url.removeprefix("file://")).with_name("data").joinpath("rows-000000.js").unlink()
    page = browser.new_page()
    page.goto(url)
    expect(page.locator("#said")).to_contain_text("data/rows-000000.js")
    expect(page.locator("[data-group]").nth(1).locator(".card img")).to_have_count(2)
    page.close()


def test_report_works_behind_a_static_host(page: Page, tmp_path: Path) -> None:
    url = report_of(tmp_path, two_cameras())
    with served(Path(url.removeprefix("file://")).parent) as host:
        page.goto(f"{host}/index.html")
        expect(page.locator(".card img").first).to_be_visible()
        page.locator("#filter").fill("p.jpg")
        expect(page.locator("h3")).to_have_text(["Group 2"])


def test_served_report_shows_originals_and_saves_without_a_download(
    page: Page, tmp_path: Path
) -> None:
    index = Path(report_of(tmp_path, two_cameras()).removeprefix("file://"))
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("<title>", '<meta name="dedup-server" content="1"><title>', 1))
    (index.parent / "review.json").write_text('{"choices": []}')
    with served(index.parent) as host:
        page.goto(f"{host}/index.html")
        page.locator(".card.remove .picture").first.click()
        image = page.locator("#pair figure.remove img")
        original = quote(storage.absolute_url(f"{tmp_path}/source/west/30.jpg"), safe="")
        expect(image).to_have_attribute("src", f"/original?url={original}")
        assert image.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 16
        page.keyboard.press("k")
        page.keyboard.press("s")
        expect(page.locator("#said")).to_have_text("Saved beside the manifest.")
        (choice,) = json.loads((index.parent / "review.json").read_text())["choices"]
        assert choice["choice"] == "keep this one"
        page.evaluate("localStorage.clear()")
        page.reload()
        expect(page.locator("#marks")).to_have_text("1 mark, saved")


def test_page_alone_shows_numbers_and_plots(browser: Browser, tmp_path: Path) -> None:
    url = report_of(tmp_path / "run", two_cameras(), unreadable={"x.jpg": "unreadable: bad"})
    alone = tmp_path / "alone" / "index.html"
    alone.parent.mkdir()
    alone.write_bytes(Path(url.removeprefix("file://")).read_bytes())
    page = browser.new_page()
    page.goto(alone.as_uri())
    expect(page.locator("#missing")).to_be_visible()
    expect(page.locator(".numbers")).to_contain_text("removed")
    expect(page.locator("svg.plot")).to_have_count(7)
    expect(page.locator("#unreadable")).to_contain_text("x.jpg")
    page.close()


def test_twenty_thousand_groups_scroll(page: Page, tmp_path: Path) -> None:
    groups = {
        f"cam-{number % 7}/{number:05}-k.jpg": {
            f"cam-{number % 7}/{number:05}-{other}.jpg": 0.01 * other for other in range(3)
        }
        for number in range(20_000)
    }
    url = report_of(tmp_path, groups)
    size = Path(url.removeprefix("file://")).with_name("data") / "groups.js"
    print(f"groups.js {size.stat().st_size / 1e6:.2f} MB")
    assert size.stat().st_size < 1_000_000
    started = time.perf_counter()
    page.goto(url)
    expect(page.locator(".card img").first).to_be_visible()
    print(f"first picture of 20,000 groups after {time.perf_counter() - started:.2f} s")
    page.locator("#sort").select_option("risk")
    expect(page.locator("h3")).to_contain_text(["Group 0"])
    gaps = page.evaluate(SCROLL)
    print(f"while scrolling: {gaps}")
    assert page.locator("*").count() < 6_000
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("h3").last).to_have_text("Group 19999")
    expect(page.locator("[data-group]").last.locator(".card img")).to_have_count(4)
    page.locator("#filter").fill("12345-")
    expect(page.locator("h3")).to_have_text(["Group 12345"])


SCROLL = """
async () => {
  const long = [];
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => long.push(entry.duration)))
    .observe({ type: "longtask" });
  const gaps = [];
  let last = performance.now();
  for (let frame = 0; frame < 240; frame++) {
    scrollBy(0, frame < 180 ? 180 : 20_000);
    await new Promise(requestAnimationFrame);
    gaps.push(performance.now() - last);
    last = performance.now();
  }
  gaps.sort((a, b) => a - b);
  return {
    median_frame_ms: Math.round(gaps[120]),
    p95_frame_ms: Math.round(gaps[228]),
    worst_frame_ms: Math.round(gaps[239]),
    long_tasks_ms: long.map(Math.round),
  };
}
"""
