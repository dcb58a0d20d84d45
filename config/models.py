"""The settings of a run: data only, frozen, and strict about unknown names.

Nearly all of it decides what the manifest says and is written into it; `execution` says how the
work is carried out and must never change a byte of it, and `alerts` when somebody is told.
"""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from config.acting import ApplySettings
from config.alerts import AlertSettings
from config.cameras import CameraSettings, ViewSettings
from config.fields import Duration, Pattern, Settings, Suffix, TimeZone, Url

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


class SourceSettings(Settings):
    """Which files of the source are images of this run."""

    suffixes: tuple[Suffix, ...] = IMAGE_SUFFIXES
    """File name endings that count as images, in any case; empty takes every file."""

    partition_by: Pattern | None = None
    r"""Regular expression searched in the path below the source; its first group (or the whole
    match) names the partition, for example `^([^/]+)/` for one folder per camera. Images of
    different partitions are never neighbours."""

    settle: Duration = "0s"
    """A file that was written less than so long ago may still be written to, and is left to the
    next night."""


class FeatureSettings(Settings):
    """What turns an image into a feature. All of it enters the fingerprint of the feature store."""

    pooling: Literal["avg", "max", "gem"] = "avg"
    """How the maps of VGG16's last convolution block become one vector."""

    gem_p: float = Field(default=3.0, ge=1.0, le=20.0)
    """Exponent of generalised-mean pooling; read only when pooling is `gem`."""

    power: float = Field(default=0.5, gt=0.0, le=1.0)
    """Power normalisation: every component is raised to it before the L2 norm."""

    image_size: int = Field(default=224, ge=32, le=1024)
    """Side in pixels of the square that VGG16 sees. 112 is a quarter of the work and finds a little
    less: docs/engines.md."""

    engine: Literal["tensorflow", "openvino"] = "tensorflow"
    """What runs VGG16. `openvino` needs the extra of that name and runs on the processor only."""

    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of the forward pass. `auto` is bfloat16 where the machine that runs the flow
    computes in it, else float32; from there on the run names the format that it chose. `int8` goes
    with `openvino`."""

    max_image_pixels: int = Field(default=89_478_485, ge=1)
    """An image with more pixels is taken for a decompression bomb and becomes an error row."""

    max_file_bytes: int = Field(default=268_435_456, ge=1)
    """A larger file is not read and becomes an error row."""

    @model_validator(mode="after")
    def _int8_goes_with_openvino(self) -> Self:
        if self.dtype == "int8" and self.engine != "openvino":
            raise ValueError(f"dtype int8 goes with engine openvino, found {self.engine}")
        return self


class GateSettings(Settings):
    """Fixed cameras: which frames take the feature of an earlier one instead of their own."""

    enabled: bool = False
    """Skip the forward pass for a frame that hardly differs from the last embedded one of its
    partition. A check decides whether that holds for the night; see `max_error`."""

    max_change: int = Field(default=16, ge=1, le=256)
    """Smallest difference of one channel, of 256, between thumbnails of 56 x 56 pixels that makes a
    frame another one."""

    sample_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of such frames that are embedded all the same, to measure the error."""

    max_error: float = Field(default=0.02, ge=0.0, le=2.0)
    """Largest cosine distance between what a sampled frame would have got and its own feature.
    Above it, and without any sample, all frames of the night are embedded after all."""


class NeighborSettings(Settings):
    """How neighbours are searched, and how well."""

    eps: float = Field(default=0.05, ge=0.0, le=1.0)
    """Largest cosine distance that joins two images."""

    scene_eps: float = Field(default=0.03, ge=0.0, le=1.0)
    """The same where scenes are compared. Measured on a camera with labels: nearly all frames of
    the empty road are within it of each other, and one of 61 with a car is (docs/cameras.md)."""

    exact_up_to: int = Field(default=20_000, ge=0)
    """In partitions of at most this many images all pairs are compared, in larger ones those of
    images that are near the same few others."""

    min_recall: float = Field(default=0.999, ge=0.0, le=1.0)
    """Share of the pairs within eps that the clusters must honour; below it the search deepens and
    in the end compares everything."""

    num_recall_samples: int = Field(default=1_000, ge=1)
    """Images compared against all others by brute force to measure that share."""

    n_trees: int = Field(default=30, ge=1, le=1_000)
    """Trees of the Annoy index, which is there to be queried and decides nothing."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the search, of the recall sample and of the index."""


class ClusterSettings(Settings):
    """How neighbours become clusters and which image of each stays."""

    min_samples: int = Field(default=2, ge=1)
    """Images within eps, itself included, that make a core image of DBSCAN."""

    keepers: Literal["cover", "first"] = "cover"
    """`cover`: every removed image is within eps of its own keeper. `first`: the first image of
    every cluster stays, whatever the distance; the summary counts the orphans this makes."""


class LibrarySettings(Settings):
    """The images that earlier nights kept, and whether this one is compared with them."""

    enabled: bool = True
    """Compare with what earlier nights kept, and remember what this one keeps."""

    window: Duration | None = None
    """Compare only with images captured at most so long before the first of this night in the same
    partition; by default with all."""


class ExecutionSettings(Settings):
    """How the work is carried out. Nothing here may change a byte of the manifest."""

    images_per_shard: int = Field(default=64, ge=1)
    """Images that one embed task handles; more when a night would need over 1,000 shards."""

    workers: int = Field(default=4, ge=1, le=4_096)
    """Tasks that run at the same time; on a cluster, the number of its slots."""

    task_runner: Literal["threads", "processes", "dask", "ray"] = "threads"
    """Where they run: threads of one process, a pool of processes, or a Dask or Ray cluster."""

    cluster_address: str | None = Field(default=None, min_length=1)
    """Address of a running Dask scheduler (`tcp://host:8786`) or Ray cluster
    (`ray://host:10001`); by default one is started on this machine for the run."""

    batch_size: int | None = Field(default=None, ge=1, le=1_024)
    """Images in one forward pass; by default 8 on a processor and 64 on a GPU."""

    items_per_search: int = Field(default=4_096, ge=1)
    """Items that one search task compares with others; more when a night would need over 1,000
    tasks."""

    max_retries: int = Field(default=2, ge=0, le=10)
    """How often a shard is tried again after a fault that can pass."""

    retry_delay_seconds: float = Field(default=10.0, ge=0.0)
    """Delay before the first retry; each further one waits six times as long."""

    weights_path: str | None = None
    """A file with the VGG16 weights (Keras .h5 or the .onnx of the weights extra). Its content is
    verified, so the path does not change a result."""

    @model_validator(mode="after")
    def _cluster_address_of_a_cluster(self) -> Self:
        if self.cluster_address is not None and self.task_runner not in ("dask", "ray"):
            raise ValueError(
                f"cluster_address needs task_runner dask or ray, found {self.task_runner}"
            )
        return self


@dataclass(frozen=True)
class PartitionSettings:
    """What holds for one partition, after all that is different for some cameras."""

    eps: float
    """Largest cosine distance of a twin."""
    window: str | None
    """How far back the library counts; None without end."""
    view: ViewSettings
    """What is compared of its images."""


class DedupConfig(Settings):
    """One run of the `dedup` flow."""

    source_url: Url
    """Folder of images: any fsspec URL or a local path. `{date}` stands for the day the run was
    scheduled for, `{yesterday}` for the day before it."""

    workspace_url: Url
    """Folder for features, manifests and reports: any fsspec URL or a local path."""

    source: SourceSettings = SourceSettings()
    features: FeatureSettings = FeatureSettings()
    gate: GateSettings = GateSettings()
    neighbors: NeighborSettings = NeighborSettings()
    clusters: ClusterSettings = ClusterSettings()
    library: LibrarySettings = LibrarySettings()

    view: ViewSettings = ViewSettings()
    """What is compared of an image."""

    cameras: tuple[CameraSettings, ...] = ()
    """What is different for some partitions: the first whose pattern fits counts."""

    price_per_image: float | None = Field(default=None, ge=0.0)
    """Cost of annotating one image, in any currency; the summary then shows what is saved."""

    allow_partial: bool = False
    """Write a manifest even when shards failed. It says so, and their images are skipped in it."""

    rebuild: bool = False
    """Go on when other settings than before leave the library of earlier nights behind, or cameras
    in it, or decide anew about a night that it has. Without, such a run ends before it begins."""

    alerts: AlertSettings = AlertSettings()
    """When a night is so unlike the earlier ones that somebody is told; decides nothing."""

    time_zone: TimeZone = "UTC"
    """IANA time zone in which `{date}` is read."""

    execution: ExecutionSettings = ExecutionSettings()

    apply: ApplySettings | None = None
    """What a deployed run starts the deployment `apply/main` with once its manifest is written;
    by default nothing."""

    @model_validator(mode="after")
    def _known_templates_only(self) -> Self:
        rest = self.source_url.replace("{date}", "").replace("{yesterday}", "")
        unknown = re.findall(r"\{[^}]*\}?", rest)
        if unknown:
            raise ValueError(
                f"source_url knows {{date}} and {{yesterday}}, found {', '.join(sorted(unknown))}"
            )
        if "{" in self.workspace_url:
            raise ValueError("workspace_url takes no template: all nights share one workspace")
        return self

    def for_night(self, day: date) -> Self:
        """Fill the templates of the source URL.

        Args:
            day: The day the run was scheduled for, in the config's time zone.

        Returns:
            A copy whose `source_url` names one folder.
        """
        source_url = self.source_url.replace("{date}", day.isoformat()).replace(
            "{yesterday}", (day - timedelta(days=1)).isoformat()
        )
        return self.model_copy(update={"source_url": source_url})

    def of_partition(self, partition: str) -> PartitionSettings:
        """What holds for one partition.

        Args:
            partition: Its name, as `source.partition_by` gives it.
        """
        return self._of_camera(next((c for c in self.cameras if c.is_of(partition)), None))

    @property
    def eps(self) -> float:
        """Largest cosine distance of a twin in partitions that no pattern fits."""
        return self._of_camera(None).eps

    def eps_of_cameras(self) -> dict[str, float]:
        """The eps of the cameras that have another than `eps`, by their pattern."""
        found = {c.pattern: self._of_camera(c).eps for c in reversed(self.cameras)}
        return {c.pattern: found[c.pattern] for c in self.cameras if found[c.pattern] != self.eps}

    def _of_camera(self, camera: CameraSettings | None) -> PartitionSettings:
        view = (camera and camera.view) or self.view
        neighbors = self.neighbors
        eps = neighbors.scene_eps if view.compare == "scene" else neighbors.eps
        if camera is not None and camera.eps is not None:
            eps = camera.eps
        window = (camera and camera.window) or self.library.window
        return PartitionSettings(eps=eps, window=window, view=view)

    def without_gate(self) -> Self:
        """A copy in which every frame is embedded."""
        return self.model_copy(update={"gate": self.gate.model_copy(update={"enabled": False})})

    def deciding_settings(self) -> dict[str, object]:
        """Everything that shapes the manifest, ready for JSON; no URL and no `execution`."""
        return self.model_dump(
            mode="json",
            include={
                "source",
                "features",
                "gate",
                "neighbors",
                "clusters",
                "library",
                "view",
                "cameras",
            },
        )
