"""The nearest images of a run as one page with pictures, which needs no server and no network."""

import base64

import pyarrow as pa
import pyarrow.compute as pc

from tasks import storage
from tasks.asking import Neighborhood
from tasks.errors import DedupError
from tasks.feature_store import iterate_thumbnails, store_url
from tasks.images import make_thumbnail
from tasks.rendering import render
from tasks.runs import Run, open_run


def publish_page(url: str, answer: Neighborhood, workspace_url: str) -> None:
    """Write the page in one step.

    Args:
        url: Where.
        answer: What it shows.
        workspace_url: Workspace of the run, whose feature store has the pictures.
    """
    run = open_run(workspace_url, answer.run_id)
    pictures = pictures_of([answer.image.url, *(found.url for found in answer.neighbors)], run)
    page = render_page(answer, pictures)
    storage.publish_bytes(storage.absolute_url(url), page.encode("utf-8", "backslashreplace"))


def render_page(answer: Neighborhood, pictures: dict[str, str]) -> str:
    """Fill the page.

    Args:
        answer: What it shows.
        pictures: Data URL of the picture of each image that has one, by URL.
    """
    return render("neighbors.html.j2", answer=answer, pictures=pictures)


def pictures_of(urls: list[str], run: Run) -> dict[str, str]:
    """Data URLs of thumbnails, by URL: from the feature store, else made of the image itself."""
    store = store_url(storage.absolute_url(run.config.workspace_url), run.config.features)
    of_run = run.images.filter(pc.is_in(run.images["url"], value_set=pa.array(urls)))
    pictures: dict[str, str] = {}
    for positions, thumbnails in iterate_thumbnails(store, of_run["image_id"]):
        shown = of_run["url"].take(pa.array(positions)).to_pylist()
        pictures |= {url: _data_url(jpeg) for url, jpeg in zip(shown, thumbnails, strict=True)}
    for url in set(urls) - pictures.keys():
        try:
            content = storage.read_bytes(url)
            max_pixels = run.config.features.max_image_pixels
            pictures[url] = _data_url(make_thumbnail(content, max_pixels=max_pixels))
        except (OSError, DedupError):
            continue  # the answer is right without its picture
    return pictures


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
