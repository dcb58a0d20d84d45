"""The page of the report: it needs nothing else for its numbers, and believes no name."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.report_page import (
    Number,
    content_hash,
    headline,
    human_bytes,
    kept_over_eps_svg,
    page_script,
    render_page,
    skipped_images,
)
from tasks.report_plots import map_plot, partition_plot
from tasks.schemas import MANIFEST
from tasks.summary import summarize
from tests.written_reports import SWEEP

METADATA = {
    "run_id": "night-1",
    "source_url": "s3://bucket/night",
    "eps": "0.05",
    "recall": "1.0",
    "is_complete": "true",
    "is_search_exact": "true",
    "weights_digest": "abc",
    "num_ignored": "{}",
}
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;.jpg"


def decision(path: str, action: str, **values: Any) -> dict[str, Any]:
    known = {"size_bytes": 500_000, "etag": "e", "sha256": path, "reason": "within eps"}
    row = {"url": f"s3://bucket/night/{path}", "cluster_id": -1, "action": action}
    return known | row | values


def skipped(path: str, reason: str = "unreadable: empty file") -> dict[str, Any]:
    return decision(path, "skip", reason=reason, sha256=None)


GROUP = [
    decision("a.jpg", "keep", cluster_id=0),
    decision("b.jpg", "remove", cluster_id=0, distance=0.25),
    decision("c.jpg", "remove", cluster_id=0, distance=0.0),
]


class Page(HTMLParser):
    """A rendered page as a browser without scripts sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def page_of(*rows: dict[str, Any], plots: Any = (), **metadata: str) -> Page:
    table = pa.Table.from_pylist(list(rows), MANIFEST)
    summary = summarize(
        table,
        METADATA | metadata,
        manifest_url="s3://cameras/m.parquet",
        report_url="s3://cameras/report/index.html",
        price_per_image=0.5,
    )
    return Page(
        render_page(
            summary,
            digest="d" * 64,
            settings={"source": {"partition_by": f"^(?P<x>{HOSTILE})"}},
            num_rows=120_000,
            plots=list(plots),
            skipped=skipped_images(table, summary.source_url),
        )
    )


def test_the_numbers_at_the_top() -> None:
    table = pa.Table.from_pylist([*GROUP, skipped("d.jpg")], MANIFEST)
    summary = summarize(
        table, METADATA | {"recall": "0.99949"}, manifest_url="m", report_url="r", price_per_image=2
    )
    assert headline(summary) == [
        Number("images", "4"),
        Number("kept", "1", "0 like no other"),
        Number("removed", "2", "of 3 readable"),
        Number("exact copies", "0"),
        Number("saved", "1 MB", "of 2 MB"),
        Number("annotation saved", "66.7 %", "4.00 less to pay"),
        Number("unreadable", "1", "skipped", is_alarming=True),
        Number("orphans", "1", "farther than eps", is_alarming=True),
        Number("recall", "99.949 %", "every pair compared"),
    ]


def test_sizes_for_people() -> None:
    sizes = [0, 999, 1_000, 32_062_305, 999_600_000, 5_000_000_000_000]
    assert [human_bytes(size) for size in sizes] == [
        *("0 bytes", "999 bytes", "1 kB", "32.1 MB", "1 GB", "5 TB")
    ]


def test_page_says_what_its_script_must_know() -> None:
    page = page_of(*GROUP)
    (body,) = (attributes for tag, attributes in page.tags if tag == "body")
    assert body == {
        "data-folder": "s3://bucket/night/",
        "data-run-id": "night-1",
        "data-manifest-digest": "d" * 64,
        "data-rows-per-script": "50",
        "data-path-scripts": "3",
    }


def test_page_without_its_folder_shows_numbers_and_says_where_the_pictures_are() -> None:
    page = page_of(*GROUP)
    assert "images 3 kept 1 0 like no other removed 2 of 3 readable" in page.text
    assert "The pictures of the 1 groups lie in the folder around this page" in page.text
    assert "No two images are within eps of each other." in page_of().text


def test_cameras_with_their_own_eps_are_named() -> None:
    said = {"cameras": [{"pattern": f"^{re.escape(HOSTILE)}", "eps": 0.01}]}
    page = page_of(config=json.dumps(said))
    assert "0.05; 0.01 for cameras '^" in page.text
    assert page.names() & {"img", "iframe"} == set()
    assert "Some cameras have an eps of their own" in page.text
    assert "Some cameras" not in page_of().text


def test_incomplete_night_is_warned_of() -> None:
    warning = "The night is not complete:"
    assert warning in page_of(is_complete="false").text
    assert warning not in page_of(is_complete="true").text


def test_all_unreadable_images_are_listed_and_many_are_folded() -> None:
    page = page_of(*(skipped(f"{number:02}.jpg") for number in range(23)))
    assert all(f"{number:02}.jpg" in page.texts for number in range(23))
    assert "3 more" in page.texts
    assert "more" not in page_of(*(skipped(f"{number}") for number in range(20))).texts
    assert "Every image could be read." in page_of().text
    assert "unreadable: empty file 00.jpg" in page.text


def test_markup_in_names_is_text() -> None:
    dots = map_plot(np.eye(3, 8, dtype=np.float32), np.zeros(3, bool), [HOSTILE, "b", "c"])
    page = page_of(
        skipped(HOSTILE, f"unreadable: {HOSTILE}"),
        source_url="s3://bucket/night",
        run_id=HOSTILE,
        plots=[dots, partition_plot([HOSTILE], np.array([True]))],
    )
    assert page.names() & {"img", "iframe", "object", "base"} == set()
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"src": "report.js", "defer": None}]
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert page.texts.count(" ".join(HOSTILE.split())) >= 3


def test_nothing_is_let_in_but_the_folder_itself() -> None:
    page = page_of(*GROUP)
    (policy,) = (
        str(attributes["content"])
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert policy == (
        f"default-src 'none'; script-src 'self' file:; style-src '{content_hash(style)}'; "
        "img-src 'self' data: blob: file:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import", style)
    assert not [tag for tag, attributes in page.tags if "style" in attributes]
    assert "http" not in page_script().decode().replace("location.protocol", "")


def test_curve_is_a_picture_of_its_own() -> None:
    svg = ET.fromstring(kept_over_eps_svg(SWEEP, eps=0.05))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    (curve,) = svg.iter("{http://www.w3.org/2000/svg}polyline")
    assert str(curve.get("points")).split() == ["46.0,34.8", "214.71,102.0", "346.0,169.2"]
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"eps 0.05", "% kept", "eps, cosine distance"} <= set(texts)


@pytest.mark.parametrize("name", ["report.groups", "report.rows", "report.paths"])
def test_script_knows_the_functions_that_the_data_calls(name: str) -> None:
    assert re.search(rf"^  {name.removeprefix('report.')}: \(", page_script().decode(), re.M)
