"""Every Arrow schema that is written to storage, and the fingerprints that name artifacts."""

import hashlib
import json

import pyarrow as pa

from tasks.errors import ArtifactError

FEATURE_DIM = 512
"""Length of a feature: the channels of VGG16's last convolution block."""

SCHEMA_VERSION = 3
"""Raised when the columns or meaning of an artifact change, so that older ones are not mixed in."""

MANIFEST_VERSION = 3
"""The same of the manifest alone. What an earlier release has decided can still be carried out,
whatever has become of the artifacts that it came from."""

_TIME = pa.timestamp("us", tz="UTC")

INVENTORY = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("camera", pa.string(), nullable=False),
        pa.field("captured_at", _TIME, nullable=False),
        pa.field("error", pa.string()),
    ]
)

SHARD = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("camera", pa.string(), nullable=False),
    ]
)

FEATURES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sharpness", pa.float32()),
        pa.field("feature", pa.list_(pa.float32(), FEATURE_DIM)),
        pa.field("error", pa.string()),
        pa.field("stands_on", pa.string()),
        pa.field("gate_error", pa.float32()),
        pa.field("thumbnail", pa.binary()),
    ]
)

IMAGES = pa.schema(
    [
        *INVENTORY,
        pa.field("item_id", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sharpness", pa.float32()),
        pa.field("stands_on", pa.string()),
    ]
)

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.int32(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
    ]
)

CELLS = pa.schema(
    [
        pa.field("home", pa.list_(pa.int32()), nullable=False),
        pa.field("guests", pa.list_(pa.int32()), nullable=False),
        pa.field("eps", pa.float64(), nullable=False),
    ]
)

CORES = pa.schema([pa.field("item_id", pa.int32(), nullable=False)])

LINKS = pa.schema(
    [
        pa.field("item_id", pa.int32(), nullable=False),
        pa.field("linked_id", pa.int32(), nullable=False),
    ]
)

CLUSTERS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int32(), nullable=False),
        pa.field("is_core", pa.bool_(), nullable=False),
    ]
)

KEEPERS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("keeper_id", pa.string(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)

REASONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

LIBRARY = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("camera", pa.string(), nullable=False),
        pa.field("captured_at", _TIME, nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("feature", pa.list_(pa.float32(), FEATURE_DIM), nullable=False),
    ]
)

MATCHES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("keeper_image_id", pa.string(), nullable=False),
        pa.field("keeper_url", pa.string(), nullable=False),
        pa.field("keeper_size_bytes", pa.int64(), nullable=False),
        pa.field("keeper_etag", pa.string(), nullable=False),
        pa.field("keeper_sha256", pa.string(), nullable=False),
        pa.field("distance", pa.float32()),
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("cluster_id", pa.int32(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("keeper_url", pa.string()),
        pa.field("distance", pa.float32()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

KNOWN = "kept by an earlier night"
"""Reason of an image that stays because it is in the library, and of a keeper that is there and is
no image of this night."""


def fingerprint(*parts: object) -> str:
    """Name a combination of inputs.

    Args:
        parts: Anything JSON can write; the order of dict keys does not matter.

    Returns:
        16 hexadecimal digits of the SHA-256 of the parts' canonical JSON.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def require_version(what: str, found: str | None, expected: int, url: str) -> None:
    """Make sure that an artifact is of the version that this code reads.

    Args:
        what: The kind of artifact, for the message.
        found: The version that it says it has.
        expected: The version of this code.
        url: Where it lies.

    Raises:
        ArtifactError: It is of another one; the message says what to do.
    """
    if found == str(expected):
        return
    is_newer = found is not None and found.isdecimal() and int(found) > expected
    hint = (
        "a newer image-dedup wrote it, and only that reads it"
        if is_newer
        else "this image-dedup reads it no more: run the night again"
    )
    raise ArtifactError(f"{what} has schema version {found}, expected {expected} ({hint}): {url}")
