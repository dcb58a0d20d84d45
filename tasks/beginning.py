"""Whether a run begins anew in its workspace, and why: other features, so another library too."""

import json
from collections.abc import Iterator

from config import FeatureSettings
from tasks import storage
from tasks.errors import MissingArtifactError
from tasks.feature_store import feature_metadata, store_url


def why_anew(workspace_url: str, settings: FeatureSettings) -> list[str]:
    """Say what makes all features of a workspace useless for a run.

    Args:
        workspace_url: Any workspace.
        settings: What turns an image into a feature in this run.

    Returns:
        What differs, such as `schema_version 4, was 3`, from the stores of other settings or
        releases; nothing where the run has a feature already, or nobody has.
    """
    ours = store_url(workspace_url, settings)
    stores = storage.list_names(storage.join(workspace_url, "features"))
    if any(store.rstrip("/") == ours for store in stores):
        return []
    wanted = _as_flat(feature_metadata(settings))
    return sorted({what for store in stores for what in _differences(store, wanted)})


def _differences(store: str, wanted: dict[str, str]) -> Iterator[str]:
    for url in storage.list_parquet(store)[:1]:
        try:
            found = _as_flat(storage.read_metadata(url))
        except MissingArtifactError:  # compacted meanwhile
            continue
        others = [name for name, value in wanted.items() if found.get(name) != value]
        for name in others:
            yield f"{name} {wanted[name]}, was {found.get(name)}"
        if not others:
            yield "the code that makes features is another"


def _as_flat(metadata: dict[str, str]) -> dict[str, str]:
    settings = json.loads(metadata.get("settings", "{}"))
    named = {name: metadata.get(name, "unknown") for name in ("schema_version", "weights_digest")}
    return named | {name: str(value) for name, value in settings.items()}
