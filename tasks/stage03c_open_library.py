"""Stage 3c: what earlier nights kept, as far as this one is compared with it."""

from config import DedupConfig
from tasks import storage
from tasks.library import library_url, seen_by
from tasks.references import Inventory, Library
from tasks.stage import stage


@stage("open_library")
def open_library(inventory: Inventory, config: DedupConfig) -> Library:
    """Name the segments that the night is compared with."""
    workspace_url = storage.absolute_url(config.workspace_url)
    night_url = storage.join(workspace_url, "nights", inventory.night_id)
    return seen_by(library_url(workspace_url, config.features), night_url, inventory.night_id)
