"""Views: what is compared of the images of each partition, and the name of each way to do it."""

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig, ViewSettings
from tasks.backgrounds import Background, background_url, read_background
from tasks.images import WHOLE, Polygon, Region, unpainted
from tasks.memo import Pixels
from tasks.scene import scene
from tasks.schemas import fingerprint


@dataclass(frozen=True)
class View:
    """All that turns the image of a partition into what VGG16 sees."""

    name: str | None = None
    """See `view_name`."""
    region: Region = WHOLE
    masks: tuple[Polygon, ...] = ()
    background: Background | None = None
    """What the partition looks like when nothing happens, where scenes are compared."""

    def of(self, pixels: Pixels) -> Pixels:
        """What of a decoded image VGG16 sees: `(S, S, 3)` uint8 both."""
        return pixels if self.background is None else self.scene(pixels)[0]

    def scene(self, pixels: Pixels) -> tuple[Pixels, float]:
        """What differs from the background, and the share of the pixels that do: see `scene`."""
        if self.background is None:
            raise ValueError("expected a view with a background, found none")
        counts = unpainted(len(pixels), self.region, self.masks)
        return scene(pixels, self.background.pixels, counts)


WHOLE_IMAGE = View()


def whole_images(_partition: str) -> View:
    """The view of every partition when nothing is said of any."""
    return WHOLE_IMAGE


def view_name(settings: ViewSettings) -> str | None:
    """Name what is compared.

    Returns:
        16 hexadecimal digits, or None for the whole image as it is.
    """
    if settings == ViewSettings():
        return None
    return fingerprint(settings.model_dump(mode="json"))


def view_names(partitions: pa.ChunkedArray, config: DedupConfig) -> pa.ChunkedArray:
    """Name the view of each of some images.

    Args:
        partitions: Their partitions.
        config: What holds for these.
    """
    unique = pc.unique(partitions)
    names = [view_name(config.of_partition(name).view) for name in unique.to_pylist()]
    return pa.array(names, pa.string()).take(pc.index_in(partitions, value_set=unique))


def compares_scenes(config: DedupConfig) -> bool:
    """Tell whether any partition may have a background."""
    views = [config.view, *(camera.view for camera in config.cameras if camera.view is not None)]
    return any(view.compare == "scene" for view in views)


def view_of(settings: ViewSettings) -> View:
    """All of a view that its settings say; there is no background yet."""
    return View(view_name(settings), settings.region or WHOLE, settings.masks)


def open_view(partition: str, night_url: str, config: DedupConfig) -> View:
    """Bring together what the images of a partition need.

    Args:
        partition: Its name.
        night_url: Folder of the night, where its background is if it has one.
        config: What holds for it.
    """
    settings = config.of_partition(partition).view
    view = view_of(settings)
    if settings.compare != "scene":
        return view
    url = background_url(night_url, config.features, view.name, partition)
    return replace(view, background=read_background(url))
