"""Finds the image that a person means, and its feature: known already, or embedded now."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig
from tasks import storage
from tasks.errors import EngineError, SourceError, UnreadableImageError
from tasks.feature_store import feature_fingerprint, iterate_features, read_image_rows, store_url
from tasks.memo import Feature, feature_memo
from tasks.paths import is_below, partition_of, relative_to
from tasks.runs import Run, read_features
from tasks.stage01_list_images import image_id
from tasks.stage03_embed_shard import embed_images, embed_pixels
from tasks.storage import StoredFile
from tasks.views import View, view_of

Origin = Literal["run", "feature store", "embedded now"]
Found = tuple[Origin, str, Feature]
"""Where a feature comes from, the SHA-256 of the content, and the feature."""

MAX_NAMED = 3


@dataclass(frozen=True)
class AskedImage:
    """An image that was asked about."""

    url: str
    origin: Origin
    """Where its feature comes from."""
    sha256: str
    """Digest of its content, 64 hexadecimal digits."""
    partition: str | None
    """Its partition in the run; None without a run, and outside of the run's source."""
    item_id: int | None
    """Its item in the run; None when it is none."""


def look_up(
    name: str, config: DedupConfig, *, workspace_url: str | None = None, run: Run | None = None
) -> tuple[AskedImage, Feature]:
    """Find an image and its `(512,)` feature.

    What the run or the workspace knows of the very same file (URL, size and version tag) is taken
    from there, and an image of the run that is gone from its place is the one that the run saw.

    Args:
        name: Local path or fsspec URL; with a run also a path below its source, or a file name
            that only one of its images has.
        config: How to embed what nobody has embedded yet; its number format has a name.
        workspace_url: Workspace whose feature store is looked into.
        run: Run whose images are looked at first.

    Raises:
        SourceError: There is no such image, several images have that name, or only what differs
            from a background is compared, and the run has not compared this one.
        UnreadableImageError: It cannot be decoded.
        EngineError: This machine does not compute in the number format.
    """
    url = locate(name, run)
    row = None if run is None else _row_of(run, url)
    file = storage.look_at(url)
    found = _from_run(run, row, file)
    if found is None:
        if file is None:
            raise SourceError(f"expected an image, found nothing: {url}")
        view = _view_of(url, config, run)
        found = _from_store(file, config, view, workspace_url)
        found = found or _embed(url, file, config, view, run)
    origin, sha256, feature = found
    asked = AskedImage(
        url=storage.printable(url),
        origin=origin,
        sha256=sha256,
        partition=_partition_of(url, run),
        item_id=None if row is None else row["item_id"],
    )
    return asked, feature


def locate(name: str, run: Run | None) -> str:
    """Find the URL that is meant by a name.

    Args:
        name: See `look_up`.
        run: Run whose images come first.

    Raises:
        SourceError: Several images of the run have that file name.
    """
    if run is None:
        return storage.absolute_url(name)
    for url in (name, storage.join(run.source_url, name), storage.absolute_url(name)):
        if _row_of(run, url) is not None:
            return url
    if "/" in name or storage.exists(name):
        return storage.absolute_url(name)
    urls = run.images["url"]
    namesakes = urls.filter(pc.ends_with(urls, f"/{storage.printable(name)}"))
    if len(namesakes) > 1:
        paths = [
            repr(relative_to(url, run.source_url)) for url in namesakes[:MAX_NAMED].to_pylist()
        ]
        raise SourceError(
            f"expected the name of one image, found {len(namesakes)} called {name!r}, such as "
            f"{', '.join(paths)}: give the path below {run.source_url}"
        )
    return namesakes[0].as_py() if len(namesakes) else storage.absolute_url(name)


def _row_of(run: Run, url: str) -> dict[str, Any] | None:
    """What a run knows of an image; None for one that is not its own."""
    position = pc.index(run.images["url"], storage.printable(url)).as_py()
    return None if position < 0 else run.images.slice(position, 1).to_pylist()[0]


def _from_run(run: Run | None, row: dict[str, Any] | None, file: StoredFile | None) -> Found | None:
    if run is None or row is None or row["item_id"] is None:
        return None
    # The gate gave it the feature of another frame: good enough to decide, not to answer with.
    if row["stands_on"] is not None:
        return None
    if file is not None and (file.size_bytes, file.etag) != (row["size_bytes"], row["etag"]):
        return None
    return "run", row["sha256"], read_features(run.features_url, [row["item_id"]])[0]


def _view_of(url: str, config: DedupConfig, run: Run | None) -> View:
    """What is compared of an image of which the run has no feature."""
    partition = _partition_of(url, run)
    settings = config.view if partition is None else config.of_partition(partition).view
    if settings.compare == "scene":
        raise SourceError(
            "expected an image whose feature the run has, because it compares what differs from "
            f"the background of a night: {storage.printable(url)}"
        )
    return view_of(settings)


def _from_store(
    file: StoredFile, config: DedupConfig, view: View, workspace_url: str | None
) -> Found | None:
    if workspace_url is None or not file.is_name_valid:
        return None
    store = store_url(storage.absolute_url(workspace_url), config.features)
    name = image_id(file.url, file.size_bytes, file.etag)
    views = pa.array([view.name], pa.string())
    rows = read_image_rows(store, pa.chunked_array([[name]]), views=views)
    rows = rows.filter(pc.is_null(rows["error"]))
    if not rows.num_rows:
        return None
    _, features = next(iterate_features(store, rows))
    return "feature store", rows["sha256"][0].as_py(), features[0]


def _embed(url: str, file: StoredFile, config: DedupConfig, view: View, run: Run | None) -> Found:
    if not file.is_regular:
        raise SourceError(f"expected an image, found a folder or a device: {file.url}")
    image = {"image_id": "", "url": url, "size_bytes": file.size_bytes, "etag": "", "camera": ""}
    one_at_a_time = config.execution.model_copy(update={"batch_size": 1})
    config = config.model_copy(update={"execution": one_at_a_time})
    try:
        [row] = embed_images(
            [image],
            read=storage.read_bytes,
            embed=lambda pixels: embed_pixels(pixels, config),
            settings=config.features,
            batch_size=1,
            memo=feature_memo(feature_fingerprint(config.features)),
            view_of=lambda _: view,
        )
    except EngineError as error:
        whose = "" if run is None else f"the features of run {run.run_id} cannot be computed here: "
        raise EngineError(f"{whose}{error}") from None
    if row["error"] is not None:
        raise UnreadableImageError(f"cannot read the image: {row['error']}: {file.url}")
    return "embedded now", row["sha256"], row["feature"]


def _partition_of(url: str, run: Run | None) -> str | None:
    if run is None or not is_below(url, run.source_url):
        return None
    return partition_of(relative_to(url, run.source_url), run.config.source.partition_by)
