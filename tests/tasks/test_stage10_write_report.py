"""The report: one page that needs no network and believes no file name."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from prefect import flow

from config import DedupConfig
from tasks import storage
from tasks.references import Manifest
from tasks.schemas import MANIFEST
from tasks.stage10_write_report import (
    ClusterStrip,
    Picture,
    cluster_strips,
    read_thumbnail,
    render_report,
    skipped_images,
    write_report,
)
from tasks.summary import Summary, summarize

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
SCRIPT = "<script>alert(1)</script>.jpg"


def decision(url: str, cluster_id: int, action: str, **values: Any) -> dict[str, Any]:
    known = {"size_bytes": 1, "etag": "e", "sha256": url, "reason": "within eps"}
    return known | {"url": url, "cluster_id": cluster_id, "action": action} | values


def kept(url: str, cluster_id: int = 0) -> dict[str, Any]:
    return decision(url, cluster_id, "keep", reason="keeper")


def removed(url: str, distance: float, cluster_id: int = 0, **values: Any) -> dict[str, Any]:
    return decision(url, cluster_id, "remove", distance=distance, **values)


def skipped(url: str, reason: str = "unreadable: empty file") -> dict[str, Any]:
    return decision(url, -1, "skip", reason=reason, sha256=None)


def manifest_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), MANIFEST)


def no_thumbnail(url: str) -> str | None:
    return None


def strips_of(*rows: dict[str, Any]) -> list[ClusterStrip]:
    return cluster_strips(manifest_of(*rows), no_thumbnail)


def urls_of(strip: ClusterStrip) -> list[str]:
    return [picture.url for picture in strip.pictures]


class Page(HTMLParser):
    """A rendered report as a browser sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def page_of(*rows: dict[str, Any], thumbnail: Any = no_thumbnail, **metadata: str) -> Page:
    """The page of a manifest."""
    table = manifest_of(*rows)
    summary = summarize(
        table, METADATA | metadata, manifest_url="s3://work/m.parquet", report_url="s3://work/r"
    )
    return Page(render_report(summary, cluster_strips(table, thumbnail), skipped_images(table)))


def jpeg(width: int = 400, height: int = 200) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "JPEG")
    return file.getvalue()


def test_keepers_come_first_and_then_the_weakest_twins() -> None:
    (strip,) = strips_of(
        removed("a", 0.0, reason="exact copy"),
        kept("b"),
        removed("c", 0.25),
        removed("d", 0.25),
        kept("e"),
        removed("f", 0.5, reason="same cluster"),
    )
    assert strip == ClusterStrip(
        cluster_id=0,
        num_images=6,
        pictures=(
            Picture("b", is_keeper=True, caption="keep", thumbnail=None),
            Picture("e", is_keeper=True, caption="keep", thumbnail=None),
            Picture("f", is_keeper=False, caption="same cluster, 50.00 %", thumbnail=None),
            Picture("c", is_keeper=False, caption="within eps, 75.00 %", thumbnail=None),
            Picture("d", is_keeper=False, caption="within eps, 75.00 %", thumbnail=None),
            Picture("a", is_keeper=False, caption="exact copy, 100.00 %", thumbnail=None),
        ),
    )


def test_largest_clusters_come_first_and_the_lower_number_of_equals() -> None:
    strips = strips_of(
        *(kept("a", 0), removed("b", 0.0, 0)),
        *(kept("c", 1), removed("d", 0.0, 1), removed("e", 0.0, 1)),
        *(kept("f", 2), removed("g", 0.0, 2)),
    )
    assert [(strip.cluster_id, strip.num_images) for strip in strips] == [(1, 3), (0, 2), (2, 2)]


def test_noise_and_skipped_images_are_in_no_cluster() -> None:
    assert strips_of(kept("a", -1), skipped("b")) == []


def test_at_most_sixty_clusters_are_shown() -> None:
    rows = [kept(f"a{number}", number) for number in range(61)] + [removed("b", 0.0, 60)]
    strips = strips_of(*rows)
    assert [strip.cluster_id for strip in strips] == [60, *range(59)]
    assert "60 of 61 clusters are shown; the manifest has all of them." in page_of(*rows).text
    assert "clusters are shown" not in page_of(*rows[:60]).text


def test_at_most_twelve_pictures_of_a_cluster_are_shown() -> None:
    rows = [kept("keeper"), *(removed(f"{number:02}", number / 64) for number in range(20))]
    (strip,) = strips_of(*rows)
    assert strip.num_images == 21
    assert urls_of(strip) == ["keeper", *(f"{number:02}" for number in range(19, 8, -1))]
    assert "Cluster 0: 21 images, 12 shown" in page_of(*rows).text
    assert "shown" not in page_of(*rows[:12]).text


def test_many_keepers_leave_half_of_the_places_to_the_twins() -> None:
    rows = [kept(f"k{number}") for number in range(8)]
    rows += [removed(f"r{number}", 0.0) for number in range(8)]
    (strip,) = strips_of(*rows)
    expected = [f"k{number}" for number in range(6)] + [f"r{number}" for number in range(6)]
    assert urls_of(strip) == expected


def test_thumbnails_are_made_of_the_shown_pictures_only() -> None:
    asked: list[str] = []
    rows = [kept("keeper"), *(removed(f"{number:02}", 0.0) for number in range(20))]
    cluster_strips(manifest_of(*rows, kept("noise", -1), skipped("bad")), asked.append)
    assert asked == ["keeper", *(f"{number:02}" for number in range(11))]


def test_skipped_images_are_listed_with_their_reasons() -> None:
    rows = [skipped("s3://b/1.jpg"), kept("s3://b/2.jpg"), skipped("s3://b/3.jpg", "not embedded")]
    assert skipped_images(manifest_of(*rows)) == [
        ("s3://b/1.jpg", "unreadable: empty file"),
        ("s3://b/3.jpg", "not embedded"),
    ]
    text = page_of(*rows).text
    assert "Skipped images unreadable: empty file s3://b/1.jpg not embedded s3://b/3.jpg" in text
    assert "Skipped images" not in page_of(kept("a")).text


def test_at_most_two_hundred_skipped_images_are_listed() -> None:
    rows = [skipped(f"{number:03}") for number in range(201)]
    assert [url for url, _ in skipped_images(manifest_of(*rows))] == [
        f"{number:03}" for number in range(200)
    ]
    assert "200 of 201 are shown; the manifest has all of them." in page_of(*rows).text
    assert "are shown" not in page_of(*rows[:200]).text


def test_markup_in_file_names_is_text() -> None:
    page = page_of(
        kept(f"s3://bucket/{SCRIPT}"),
        removed('s3://bucket/"><img src=x onerror=alert(1)>.jpg', 0.0),
        skipped(f"s3://bucket/<b>/{SCRIPT}", f"unreadable: {SCRIPT}"),
        source_url=f"s3://bucket/{SCRIPT}",
    )
    assert "<script" not in page.source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page.source
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    assert f"unreadable: {SCRIPT}" in page.text
    assert "keep" in page.texts


def test_incomplete_night_is_warned_of() -> None:
    warning = "The night is not complete:"
    assert warning in page_of(kept("a"), is_complete="false").text
    assert warning not in page_of(kept("a"), is_complete="true").text


def test_night_without_clusters_says_so() -> None:
    text = page_of().text
    assert "No two images are within eps of each other." in text
    assert "Cluster 0" not in text


def test_page_reaches_for_nothing_outside_itself() -> None:
    page = page_of(
        kept("https://example.com/a.jpg"),
        removed("http://example.com/b.jpg", 0.0),
        skipped("https://example.com/c.jpg"),
        thumbnail=lambda url: "data:image/jpeg;base64,QUJD",
        source_url="https://example.com/night",
    )
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert links == ["data:image/jpeg;base64,QUJD"] * 2
    assert not re.search(r"url\(|@import", page.source)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "base"} == set()
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_page_shows_numbers_and_marks_keepers() -> None:
    page = page_of(kept("s3://b/stays.jpg"), removed("s3://b/goes.jpg", 0.03125), kept("c", -1))
    assert "3 images" in page.text
    assert "2 keep" in page.text
    assert "1 remove" in page.text
    assert "66.7 % of the annotation cost left" in page.text
    assert [attributes for tag, attributes in page.tags if tag == "figure"] == [
        {"class": "keeper"},
        {},
    ]
    assert "no picture keep stays.jpg no picture within eps, 96.88 % goes.jpg" in page.text


def config(**settings: Any) -> DedupConfig:
    return DedupConfig(source_url="/night", workspace_url="/work", **settings)


def test_thumbnail_is_a_small_jpeg_in_the_page_itself(place: str) -> None:
    url = f"{storage.absolute_url(place)}/a.jpg"
    storage.publish_bytes(url, jpeg(400, 200))
    start, _, data = str(read_thumbnail(url, config())).partition(",")
    assert start == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (160, 80))


def test_image_that_is_gone_has_no_picture(place: str) -> None:
    url = f"{storage.absolute_url(place)}/a.jpg"
    assert read_thumbnail(url, config()) is None
    page = page_of(kept(url), thumbnail=lambda url: read_thumbnail(url, config()))
    assert "no picture keep a.jpg" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_image_that_broke_or_is_too_large_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(jpeg()[:100])
    (tmp_path / "large.jpg").write_bytes(jpeg(101, 100))
    limited = config(features={"max_image_pixels": 10_000})
    assert read_thumbnail(f"{tmp_path}/broken.jpg", config()) is None
    assert read_thumbnail(f"{tmp_path}/large.jpg", limited) is None
    assert read_thumbnail(f"{tmp_path}/large.jpg", config()) is not None


@pytest.mark.usefixtures("prefect_server")
def test_write_report_publishes_page_and_summary_beside_the_manifest(tmp_path: Path) -> None:
    run_url = storage.absolute_url(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(jpeg())
    table = manifest_of(kept(f"{run_url}/a.jpg"), removed(f"{run_url}/gone.jpg", 0.0))
    manifest = Manifest(url=f"{run_url}/manifest.parquet", run_url=run_url)
    storage.publish_table(manifest.url, table.replace_schema_metadata(METADATA))

    @flow
    def report_alone() -> Summary:
        return write_report(manifest, config(price_per_image=2.0), 7, {"list": 0.5})

    summary = report_alone()

    assert (summary.num_embedded, summary.seconds) == (7, {"list": 0.5})
    assert (summary.cost_saved, summary.cost_left) == (2.0, 2.0)
    assert (summary.manifest_url, summary.report_url) == (manifest.url, f"{run_url}/report.html")
    assert Summary.model_validate_json((tmp_path / "summary.json").read_bytes()) == summary
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert page.texts.count("no picture") == 1
