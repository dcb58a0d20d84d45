"""Serves the report of a run, its images, and the place where a review is saved."""

import re
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flows.local_server import LocalServer, read_body
from tasks import storage
from tasks.errors import MissingArtifactError, ReviewError
from tasks.manifests import LoadedManifest, report_url_of
from tasks.originals import Originals
from tasks.reviews import Review, parse_review, verdicts_of

MAX_REVIEW_BYTES = 64 * 2**20
"""A choice for each of 100,000 images with long names has half of that."""

# Plain names only: no path that leads out of the folder, and no hidden or half-written file.
_REPORT_FILE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
}
_MARK = b'<head><meta name="dedup-server" content="1">'


def report_server(manifest: LoadedManifest, port: int) -> LocalServer:
    """Make the server of a run's report.

    Args:
        manifest: Of the run.
        port: Where, 0 for a free one.

    Raises:
        MissingArtifactError: There is no report beside the manifest.
    """
    index_url = report_url_of(manifest.url)
    if not storage.exists(index_url):
        raise MissingArtifactError(f"expected a report, found nothing: {index_url}")
    folder_url = index_url.rpartition("/")[0]
    return LocalServer(
        [
            Route("/original", original_endpoint(Originals(manifest))),
            Route("/review.json", _review_endpoint(manifest), methods=["GET", "PUT"]),
            Route("/{path:path}", _file_endpoint(folder_url)),
        ],
        port,
    )


def original_endpoint(originals: Originals) -> Callable[[Request], Response]:
    """Answer `?url=` with an image of the manifest."""

    def original(request: Request) -> Response:
        image = originals.show(request.query_params.get("url", ""))
        return Response(image.content, media_type=image.media_type)

    return original


def _file_endpoint(folder_url: str) -> Callable[[Request], Response]:
    def file(request: Request) -> Response:
        path = request.scope["path"][1:] or "index.html"
        if _REPORT_FILE.fullmatch(path) is None:
            raise FileNotFoundError("the report has no such file")
        try:
            content = storage.read_bytes(storage.join(folder_url, path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError("the report has no such file") from None
        if path == "index.html":
            content = content.replace(b"<head>", _MARK, 1)
        ending = path.rpartition(".")[2]
        return Response(content, media_type=_MEDIA_TYPES.get(ending, "application/octet-stream"))

    return file


def _review_endpoint(manifest: LoadedManifest) -> Callable[[Request], Awaitable[Response]]:
    url = review_url(manifest.url)

    def read() -> Response:
        try:
            content = storage.read_bytes(url)
        except FileNotFoundError:
            content = _empty_review(manifest).model_dump_json().encode()
        return Response(content, media_type="application/json")

    def save(content: bytes) -> Response:
        try:
            _check_review(content, manifest, url)
        except ReviewError as error:
            raise HTTPException(422, str(error)) from None
        storage.publish_bytes(url, content)
        return PlainTextResponse("saved\n")

    async def review(request: Request) -> Response:
        if request.method != "PUT":
            return await run_in_threadpool(read)
        return await run_in_threadpool(save, await read_body(request, MAX_REVIEW_BYTES))

    return review


def review_url(manifest_url: str) -> str:
    """Where the review of a manifest lies."""
    return storage.join(manifest_url.rpartition("/")[0], "review.json")


def _empty_review(manifest: LoadedManifest) -> Review:
    return Review(
        format="image-dedup review 1",
        run_id=manifest.summary.run_id,
        manifest_digest=manifest.digest,
        choices=(),
    )


def _check_review(content: bytes, manifest: LoadedManifest, url: str) -> None:
    review = parse_review(content, url)
    # A person may take back all that was said; `dedup review` would have nothing to do then.
    if review != _empty_review(manifest):
        verdicts_of(review, manifest)
