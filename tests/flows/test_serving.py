"""The server of a report, over real connections."""

import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from flows.local_server import LocalServer
from flows.serving import MAX_REVIEW_BYTES, report_server, review_url
from tasks import storage
from tasks.errors import DedupError
from tasks.manifests import read_manifest
from tests.flows.test_cli import DEDUP, dedup
from tests.written_nights import publish_manifest

HOSTILE = "<img src=x onerror=alert(1)> \"'&?#%2e\u202e.jpg"
SCRIPT = b"<script>alert(1)</script>"


def picture(form: str, **options: object) -> bytes:
    pixels = np.linspace(0, 255, 40 * 60 * 3).astype(np.uint8).reshape(40, 60, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (60, 40), "red")).save(file)
    return file.getvalue()


def bomb() -> bytes:
    """A header of a picture of 100,000 x 100,000 pixels."""
    header = bytearray(picture("PNG"))
    header[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(header)


@dataclass(frozen=True)
class ReportedNight:
    """Images, a manifest that keeps them all, and a small report about it."""

    source_url: str
    manifest_url: str

    def url(self, path: str) -> str:
        return storage.join(self.source_url, path)


def write_reported_night(place: str, contents: dict[str, bytes]) -> ReportedNight:
    base = storage.absolute_url(place)
    source_url, run_url = f"{base}/source", f"{base}/workspace/runs/night-0123456789abcdef"
    rows = []
    for path, content in sorted(contents.items()):
        storage.publish_bytes(storage.join(source_url, path), content)
        rows.append(
            {
                "url": storage.join(source_url, path),
                "size_bytes": len(content),
                "etag": "seen",
                "sha256": hashlib.sha256(content).hexdigest(),
                "cluster_id": 0,
                "action": "keep",
                "reason": "keeper",
            }
        )
    publish_manifest(f"{run_url}/manifest.parquet", source_url, rows, {})
    storage.publish_bytes(f"{run_url}/report/index.html", b"<!doctype html><head></head>hello")
    storage.publish_bytes(f"{run_url}/report/report.js", b"'use strict'")
    storage.publish_bytes(f"{run_url}/report/data/rows-000000.js", b"rows()")
    return ReportedNight(source_url, f"{run_url}/manifest.parquet")


CONTENTS = {
    "plain.jpg": picture("JPEG"),
    "plain.png": picture("PNG"),
    "scan.tiff": picture("TIFF"),
    "phone.heic": heic(),
    HOSTILE: picture("JPEG", quality=50),
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg">' + SCRIPT + b"</svg>",
    "page.jpg": b"<!doctype html>" + SCRIPT,
    "bomb.png": bomb(),
}


@contextmanager
def running(server: LocalServer) -> Iterator[LocalServer]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@contextmanager
def visiting(server: LocalServer) -> Iterator[httpx.Client]:
    """Somebody who has opened the address that was printed."""
    with httpx.Client(base_url=origin(server), follow_redirects=True, trust_env=False) as client:
        assert client.get(server.url).status_code == 200
        yield client


def origin(server: LocalServer) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> ReportedNight:
    return write_reported_night(str(tmp_path_factory.mktemp("night")), CONTENTS)


@pytest.fixture(scope="module")
def server(night: ReportedNight) -> Iterator[LocalServer]:
    with running(report_server(read_manifest(night.manifest_url), 0)) as server:
        yield server


@pytest.fixture(scope="module")
def visitor(server: LocalServer) -> Iterator[httpx.Client]:
    with visiting(server) as client:
        yield client


def ask(
    server: LocalServer, target: str, *headers: tuple[str, str], method: str = "GET"
) -> http.client.HTTPResponse:
    """Send a request exactly as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def host(server: LocalServer) -> tuple[str, str]:
    return "Host", f"127.0.0.1:{server.port}"


def cookie(server: LocalServer) -> tuple[str, str]:
    return "Cookie", f"dedup_{server.port}={server.url.partition('token=')[2]}"


def review(night: ReportedNight, *choices: dict[str, object], **changes: object) -> bytes:
    manifest = read_manifest(night.manifest_url)
    head = {
        "format": "image-dedup review 1",
        "run_id": manifest.summary.run_id,
        "manifest_digest": manifest.digest,
        "choices": choices,
    }
    return json.dumps(head | changes).encode()


def test_token_becomes_a_cookie_and_leaves_the_address(server: LocalServer) -> None:
    answer = httpx.get(server.url, trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    said = answer.headers["set-cookie"]
    assert re.fullmatch(
        rf"dedup_{server.port}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=strict", said
    )


def test_a_link_on_another_site_works_too(server: LocalServer) -> None:
    answer = httpx.get(server.url, headers={"Sec-Fetch-Site": "cross-site"}, trust_env=False)
    assert (answer.status_code, answer.headers["refresh"]) == (200, "0; url=/")
    assert "SameSite=strict" in answer.headers["set-cookie"]


def test_each_start_has_another_token(night: ReportedNight, server: LocalServer) -> None:
    with running(report_server(read_manifest(night.manifest_url), 0)) as other:
        assert other.url.partition("token=")[2] != server.url.partition("token=")[2]


@pytest.mark.parametrize(
    "target",
    ["/", "/?token=", "/?token=wrong", "/?token=%C3%BC", "/report.js", "/review.json", "/original"],
)
def test_without_the_token_there_is_nothing(server: LocalServer, target: str) -> None:
    for given in [(), (("Cookie", f"dedup_{server.port}=wrong"),), (("Cookie", "dedup_1=x"),)]:
        answer = ask(server, target, host(server), *given)
        assert (answer.status, answer.getheader("set-cookie")) == (403, None)


def test_token_is_taken_at_the_root_only(server: LocalServer) -> None:
    token = server.url.partition("?")[2]
    for target in ("/report.js", "//evil.example/", "/original"):
        answer = ask(server, f"{target}?{token}", host(server))
        assert (answer.status, answer.getheader("location")) == (403, None)


def test_host_must_be_this_server(server: LocalServer) -> None:
    port = server.port
    statuses = {
        name: ask(server, "/report.js", ("Host", name), cookie(server)).status
        for name in (
            *(f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"),
            *("127.0.0.1", "evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}"),
        )
    }
    assert list(statuses.values()) == [200, 200, 200, 403, 403, 403, 403]
    assert ask(server, "/report.js", cookie(server)).status in (400, 403)
    twice = ask(server, "/report.js", host(server), ("Host", "evil.example"), cookie(server))
    assert twice.status in (400, 403)


def test_server_listens_on_the_loopback_interface_only(server: LocalServer) -> None:
    assert server._socket.getsockname()[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET6) as probe, pytest.raises(OSError, match=r"refused|assign"):
        probe.connect(("::1", server.port))


def test_report_is_served_with_a_mark_and_headers(visitor: httpx.Client) -> None:
    page = visitor.get("/")
    assert page.text == ('<!doctype html><head><meta name="dedup-server" content="1"></head>hello')
    script = visitor.get("/data/rows-000000.js")
    assert (script.text, script.headers["content-type"]) == (
        "rows()",
        "text/javascript; charset=utf-8",
    )
    for answer in (page, script, visitor.get("/nothing"), httpx.get(visitor.base_url)):
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "target",
    [
        "/../manifest.parquet",
        "/%2e%2e/manifest.parquet",
        "/..%2fmanifest.parquet",
        "/%2e%2e%2fmanifest.parquet",
        "/data/%2e%2e/%2e%2e/manifest.parquet",
        "/data/..%5c..%5cmanifest.parquet",
        "/%252e%252e/manifest.parquet",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/file:///etc/passwd",
        "/data",
        "/data/",
        "/.hidden",
        "/index.html%00.js",
        "/report.js%0a",
        "/report.js/",
    ],
)
def test_no_path_leads_out_of_the_report(server: LocalServer, target: str) -> None:
    assert ask(server, target, host(server), cookie(server)).status == 404


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("plain.jpg", "image/jpeg"), ("plain.png", "image/png"), (HOSTILE, "image/jpeg")],
)
def test_what_browsers_show_is_served_as_it_is(
    visitor: httpx.Client, night: ReportedNight, path: str, media_type: str
) -> None:
    answer = visitor.get("/original", params={"url": night.url(path)})
    assert (answer.status_code, answer.content) == (200, CONTENTS[path])
    assert answer.headers["content-type"] == media_type


@pytest.mark.parametrize("path", ["scan.tiff", "phone.heic"])
def test_what_browsers_do_not_show_becomes_a_jpeg(
    visitor: httpx.Client, night: ReportedNight, path: str
) -> None:
    answer = visitor.get("/original", params={"url": night.url(path)})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size) == ("JPEG", (60, 40))


@pytest.mark.parametrize("path", ["drawing.svg", "page.jpg", "bomb.png"])
def test_what_is_no_image_is_not_served(
    visitor: httpx.Client, night: ReportedNight, path: str
) -> None:
    answer = visitor.get("/original", params={"url": night.url(path)})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert SCRIPT not in answer.content


def test_only_images_of_the_manifest_are_served(
    visitor: httpx.Client, night: ReportedNight, tmp_path: Path
) -> None:
    (tmp_path / "other.jpg").write_bytes(CONTENTS["plain.jpg"])
    storage.publish_bytes(night.url("later.jpg"), CONTENTS["plain.jpg"])
    urls = [
        *("", "/etc/passwd", "file:///etc/passwd", f"file://{tmp_path}/other.jpg"),
        *(night.url("later.jpg"), night.url("../source/plain.jpg"), night.manifest_url),
        *("http://127.0.0.1:1/x.jpg", night.url("plain.jpg") + "\0"),
    ]
    statuses = [visitor.get("/original", params={"url": url}).status_code for url in urls]
    assert statuses == [404] * len(urls)
    assert visitor.get("/original").status_code == 404


def test_changed_or_vanished_images_are_404_and_quarantined_ones_are_found(tmp_path: Path) -> None:
    night = write_reported_night(
        str(tmp_path), dict.fromkeys(("a.jpg", "b.jpg", "sub/c.jpg"), CONTENTS["plain.jpg"])
    )
    (tmp_path / "source/a.jpg").write_bytes(CONTENTS["plain.png"])
    (tmp_path / "source/b.jpg").unlink()
    quarantined = tmp_path / "workspace/quarantine/night-0123456789abcdef/some-apply/sub/c.jpg"
    quarantined.parent.mkdir(parents=True)
    (tmp_path / "source/sub/c.jpg").rename(quarantined)
    with (
        running(report_server(read_manifest(night.manifest_url), 0)) as server,
        visiting(server) as visitor,
    ):
        statuses = [
            visitor.get("/original", params={"url": night.url(path)}).status_code
            for path in ("a.jpg", "b.jpg", "sub/c.jpg")
        ]
    assert statuses == [404, 404, 200]


def test_review_is_saved_only_from_a_page_of_this_server(
    server: LocalServer, visitor: httpx.Client, night: ReportedNight
) -> None:
    nobody = visitor.get("/review.json").json()
    assert nobody["choices"] == []
    saved = review(night, {"choice": "keep all", "cluster_id": 0})
    for given in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert visitor.put("/review.json", content=saved, headers=given).status_code == 403
    assert not storage.exists(review_url(night.manifest_url))

    answer = visitor.put("/review.json", content=saved, headers={"Origin": origin(server)})
    assert (answer.status_code, answer.text) == (200, "saved\n")
    assert storage.read_bytes(review_url(night.manifest_url)) == saved
    assert visitor.get("/review.json").content == saved
    assert visitor.request("DELETE", "/review.json", headers={"Origin": origin(server)}).is_error


def test_what_is_no_review_is_refused_and_changes_nothing(
    server: LocalServer, visitor: httpx.Client, night: ReportedNight
) -> None:
    before = review(night)
    headers = {"Origin": origin(server)}
    assert visitor.put("/review.json", content=before, headers=headers).status_code == 200
    about = {"choice": "not a duplicate", "url": night.url("plain.jpg")}
    refused = [
        *(b"", b"no json", b"[]", b'{"format": "image-dedup review 1"}', b"\xff\xfe"),
        review(night, format="image-dedup review 2"),
        review(night, run_id="another"),
        review(night, manifest_digest="0" * 64),
        review(night, extra=1),
        review(night, {"choice": "delete all", "cluster_id": 0}),
        review(night, {"choice": "keep all", "cluster_id": "0"}),
        review(night, {"choice": "keep all", "cluster_id": -1}),
        review(night, {"choice": "keep all", "url": "x"}),
        review(night, {"choice": "not a duplicate", "cluster_id": 1}),
        review(night, about, about | {"choice": "keep this one"}),
        review(night, *[{"choice": "keep all", "cluster_id": 1}] * 2),
    ]
    statuses = [
        visitor.put("/review.json", content=content, headers=headers).status_code
        for content in refused
    ]
    assert statuses == [422] * len(refused)
    assert storage.read_bytes(review_url(night.manifest_url)) == before


def test_too_large_a_review_is_not_read(
    server: LocalServer, visitor: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.serving.MAX_REVIEW_BYTES", 1_000)
    assert MAX_REVIEW_BYTES > 1_000
    headers = {"Origin": origin(server)}
    told = visitor.put("/review.json", content=b" " * 1_001, headers=headers)
    untold = visitor.put("/review.json", content=iter([b" " * 600, b" " * 600]), headers=headers)
    assert (told.status_code, untold.status_code) == (413, 413)


def test_works_on_every_store(place: str) -> None:
    night = write_reported_night(place, {name: CONTENTS[name] for name in ("plain.jpg", HOSTILE)})
    with (
        running(report_server(read_manifest(night.manifest_url), 0)) as server,
        visiting(server) as visitor,
    ):
        assert visitor.get("/report.js").text == "'use strict'"
        assert visitor.get("/none.js").status_code == 404
        assert visitor.get("/data").status_code == 404
        for path in ("plain.jpg", HOSTILE):
            shown = visitor.get("/original", params={"url": night.url(path)})
            assert shown.content == CONTENTS[path]
        saved = review(night, {"choice": "remove all", "cluster_id": 0})
        answer = visitor.put("/review.json", content=saved, headers={"Origin": origin(server)})
        assert answer.status_code == 200
        assert visitor.get("/review.json").content == saved


def test_a_taken_port_is_named(night: ReportedNight, server: LocalServer) -> None:
    with pytest.raises(DedupError, match=f"cannot listen on port {server.port}: Address already"):
        report_server(read_manifest(night.manifest_url), server.port)


def test_a_run_without_a_report_is_named(tmp_path: Path) -> None:
    night = write_reported_night(str(tmp_path), {"plain.jpg": CONTENTS["plain.jpg"]})
    (tmp_path / "workspace/runs/night-0123456789abcdef/report/index.html").unlink()
    finished = dedup("serve", night.manifest_url)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "expected a report, found nothing" in finished.stderr
    assert dedup("serve", "night-0123456789abcdef").returncode == 2


def test_command_prints_one_url_and_ends_cleanly(night: ReportedNight) -> None:
    with subprocess.Popen(
        [DEDUP, "serve", night.manifest_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(follow_redirects=True, trust_env=False) as client:
            assert client.get(url).status_code == 200
            process.send_signal(signal.SIGINT)
            rest, said = process.communicate(timeout=30)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", url)
    assert (process.returncode, rest) == (0, "")
    assert "Ctrl-C ends it" in said
    assert url.partition("token=")[2] not in said
    assert "Traceback" not in said


def test_quoted_urls_reach_the_manifest(visitor: httpx.Client, night: ReportedNight) -> None:
    target = f"/original?url={quote(night.url(HOSTILE), safe='')}"
    assert visitor.get(target).content == CONTENTS[HOSTILE]
