"""The nightly flow: from a folder of images to a manifest of what is redundant."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from prefect import Task, flow
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run

from config import ApplyConfig, DedupConfig
from flows.artifacts import ProgressArtifact, show_report, show_shards
from flows.events import tell_failed_shards, tell_night
from flows.fan_out import Outcome, fan_out
from flows.logs import prepare_logs
from flows.progress import watcher
from tasks.errors import NightIncompleteError, ServerError
from tasks.machine import resolved, this_machine
from tasks.references import (
    Cells,
    Clusters,
    Collection,
    FeatureFile,
    GateCheck,
    Inventory,
    Library,
    LinkFile,
    Matches,
    Neighbors,
    SearchRange,
    Shard,
)
from tasks.stage00_check_settings import check_night, check_settings
from tasks.stage01_list_images import list_images
from tasks.stage02_plan_shards import plan_shards
from tasks.stage02b_make_backgrounds import make_backgrounds
from tasks.stage03_embed_shard import embed_shard
from tasks.stage03b_check_gate import check_gate
from tasks.stage03c_open_library import open_library
from tasks.stage04_collect_features import collect_features
from tasks.stage04b_match_library import match_library
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import find_cores, find_neighbors, mark_cores
from tasks.stage07_cluster_images import cluster_images, measure_recall
from tasks.stage08_choose_keepers import choose_keepers
from tasks.stage08b_sweep_eps import sweep_eps
from tasks.stage08c_heed_reviews import heed_reviews
from tasks.stage09_write_manifest import write_manifest
from tasks.stage10_write_report import write_report
from tasks.stage11_build_index import build_index
from tasks.stage12_extend_library import extend_library
from tasks.summary import Summary
from tasks.views import compares_scenes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SEARCH_DEPTHS = (16, 64, 0)
"""Cells that an item is in, tried one after the other until the recall is good enough; 0 compares
every pair."""

MAX_SEARCHES = 1_000
"""Prefect's server loses sight of many more tasks than that."""

MAX_FAILURES_NAMED = 10


@flow(name="dedup", retries=0, validate_parameters=True)
def dedup(config: DedupConfig) -> Summary:
    """Find what is redundant among the images of one source and write the manifest.

    Args:
        config: What to read, where to write, and how to decide.

    Raises:
        ChangedSettingsError: Other settings than before would leave behind what earlier nights
            have done; nothing was written but, at most, the listing of the night.
        NightIncompleteError: Shards failed for good; everything embedded is kept, and the same
            run again embeds only what is missing.
        DedupError: Anything else that a person must mend.
    """
    prepare_logs()
    scheduled = flow_run.scheduled_start_time.astimezone(ZoneInfo(config.time_zone))
    config = config.for_night(scheduled.date())
    # From here on the run names the number format that it computes in.
    config = config.model_copy(update={"features": resolved(config.features, this_machine())})
    seconds: dict[str, float] = {}
    with stopwatch(seconds, "list"):
        inventory = list_night(config)
        shards = plan_shards(inventory, config)
    with stopwatch(seconds, "embed"):
        feature_files, gate = embed_night(inventory, shards, config)
    with stopwatch(seconds, "collect"):
        library = open_library(inventory, config) if config.library.enabled else None
        collection = collect_features(inventory, config, gate, library)
    with stopwatch(seconds, "library"):
        matches, fresh = compare_with_library(library, collection, config)
    with stopwatch(seconds, "neighbors"):
        neighbors, clusters = search_neighbors(fresh, config)
    with stopwatch(seconds, "cluster"):
        keepers = choose_keepers(clusters, fresh, config)
        keepers = heed_reviews(keepers, clusters, fresh, config)
    with stopwatch(seconds, "sweep"):
        sweep_eps(collection, config)  # for the report; no decision waits for it
    with stopwatch(seconds, "manifest"):
        manifest = write_manifest(
            inventory, collection, neighbors, clusters, keepers, config, gate, matches
        )
        if library is not None:
            extend_library(inventory, collection, manifest, config)
    with stopwatch(seconds, "index"):
        build_index(collection, config)  # for users to query; no decision waits for it
    num_embedded = sum(file.num_embedded for file in feature_files)
    summary = write_report(manifest, config, num_embedded, seconds)
    show_report(summary.report_url)
    tell_night(summary)
    hand_over(summary, config)
    return summary


def list_night(config: DedupConfig) -> Inventory:
    """List the images, unless what earlier nights have done would be worth nothing after it."""
    if not config.library.enabled:
        return list_images(config)
    check_settings(config)
    inventory = list_images(config)
    check_night(inventory, config)
    return inventory


def embed_night(
    inventory: Inventory, shards: list[Shard], config: DedupConfig
) -> tuple[list[FeatureFile], GateCheck | None]:
    """Embed what is missing; all of it, if the change gate turns out to have broken its promise."""
    if compares_scenes(config):
        make_backgrounds(shards, config)
    feature_files = embed_shards(shards, config)
    if not config.gate.enabled:
        return feature_files, None
    gate = check_gate(inventory, config)
    if not gate.is_trusted:
        logger.warning("the change gate is off for this night: every frame is embedded")
        ungated = config.without_gate()
        ungated_files, _ = embed_night(inventory, plan_shards(inventory, ungated), ungated)
        feature_files += ungated_files
    return feature_files, gate


def embed_shards(shards: list[Shard], config: DedupConfig) -> list[FeatureFile]:
    """Embed all shards; the failure of one does not stop the others."""
    execution = config.execution
    task = embed_shard.with_options(
        retries=execution.max_retries,
        retry_delay_seconds=[
            execution.retry_delay_seconds * 6**n for n in range(execution.max_retries)
        ],
        retry_jitter_factor=0.5,
    )
    progress = ProgressArtifact(watcher())
    progress.start(sum(shard.num_images for shard in shards))
    outcome = fan_out(
        task,
        {"shard": shards},
        {"config": config},
        execution,
        on_done=lambda shard: progress.advance(shard.num_images),
    )
    show_shards(outcome)
    for failure in outcome.failures:
        logger.error("shard %d failed: %r", failure.reference.number, failure.error)
    if outcome.failures:
        message = describe_failures(outcome, num_shards=len(shards))
        if not config.allow_partial:
            tell_failed_shards(
                message,
                config.source_url,
                num_failed=len(outcome.failures),
                num_untried=len(outcome.untried),
                num_images=num_missing(outcome),
            )
            raise NightIncompleteError(message)
        logger.warning("%s The manifest will say that the night is not complete.", message)
    return outcome.results


def compare_with_library(
    library: Library | None, collection: Collection, config: DedupConfig
) -> tuple[Matches | None, Collection]:
    """Find what earlier nights kept, and leave only the other images to be compared."""
    if library is None:
        return None, collection
    return match_library(library, collection, config)


def search_neighbors(collection: Collection, config: DedupConfig) -> tuple[Neighbors, Clusters]:
    """Search and cluster, deeper until the measured recall is good enough."""
    settings = config.neighbors
    is_small = collection.largest_partition <= settings.exact_up_to
    for depth in (0,) if is_small else SEARCH_DEPTHS:
        cells = plan_cells(collection, depth, config)
        links = search_cells(cells, collection, config)
        clusters = cluster_images(*links, collection, config)
        recall = measure_recall(clusters, cells, collection, config)
        if recall >= settings.min_recall:
            break
    return Neighbors(recall=recall, depth=depth), clusters


def search_cells(
    cells: Cells, collection: Collection, config: DedupConfig
) -> tuple[list[LinkFile], Cells]:
    """Find what pairs within eps connect; before that the core items, if not all linked ones are.

    Returns:
        The links, and the cells with the core items marked.
    """
    fixed: dict[str, Any] = {"collection": collection}
    searches = search_ranges(cells.num_items, config.execution.items_per_search)
    if config.clusters.min_samples > 2:
        counted = fixed | {"cells": cells, "config": config}
        core_files = search_all(find_cores, searches, counted, config)
        cells = mark_cores(core_files, cells)
    return search_all(find_neighbors, searches, fixed | {"cells": cells}, config), cells


def search_all(
    task: Task[..., Result], searches: list[SearchRange], fixed: dict[str, Any], config: DedupConfig
) -> list[Result]:
    """Run one task over all search ranges; the first that fails for good fails the run."""
    outcome = fan_out(task, {"search": searches}, fixed, config.execution)
    if outcome.failures:
        raise outcome.failures[0].error
    return outcome.results


def search_ranges(num_items: int, items_per_search: int) -> list[SearchRange]:
    """Cut the items into ranges of equal size, at most `MAX_SEARCHES` of them."""
    size = max(items_per_search, -(-num_items // MAX_SEARCHES))
    return [SearchRange(start, min(start + size, num_items)) for start in range(0, num_items, size)]


def hand_over(summary: Summary, config: DedupConfig) -> None:
    """Start the deployment that acts on the manifest, if the config says so."""
    if config.apply is None:
        return
    if not deployment.id:
        logger.info("not applied: only a deployed run starts apply/main; use dedup apply")
        return
    settings = ApplyConfig(
        manifest_url=summary.manifest_url,
        workspace_url=config.workspace_url,
        **config.apply.model_dump(),
    )
    try:
        run = run_deployment(
            "apply/main",
            parameters={"config": settings.model_dump(mode="json")},
            timeout=0,
            flow_run_name=f"apply-{summary.run_id}",
            as_subflow=False,  # Prefect cannot suspend subflows, and this one may wait for a person
            # A retry that decides otherwise is applied, too; one that decides the same is not.
            idempotency_key=f"{flow_run.id}-{summary.run_id}",
        )
    except ObjectNotFound:
        raise ServerError(
            "the config has an apply section, but there is no deployment apply/main: deploy "
            "deployments/prefect.yaml"
        ) from None
    # Prefect types the run as one that might be a coroutine; here it never is.
    logger.info("started apply/main as %s", run.name)  # type: ignore[union-attr]


def describe_failures(outcome: Outcome[Shard, FeatureFile], *, num_shards: int) -> str:
    """Name the failed shards with their causes in one line; of very many, only the first."""
    failures, untried = outcome.failures, outcome.untried
    shards = "; ".join(
        f"shard {failure.reference.number} ({failure.reference.num_images} images from "
        f"{failure.reference.first_url}): {type(failure.error).__name__}: {failure.error}"
        for failure in failures[:MAX_FAILURES_NAMED]
    )
    if len(failures) > MAX_FAILURES_NAMED:
        shards += f"; and {len(failures) - MAX_FAILURES_NAMED} more, each with a line in the log"
    if untried:
        shards += f"; after these, one after the other, {len(untried)} more were not tried"
    return (
        f"{len(failures)} of {num_shards} shards failed, "
        f"{num_missing(outcome)} images are not embedded: "
        f"{shards}. The others kept their work: the same run again embeds only what is missing."
    )


def num_missing(outcome: Outcome[Shard, FeatureFile]) -> int:
    """Images of the shards that failed or were not tried."""
    missing = [failure.reference for failure in outcome.failures] + outcome.untried
    return sum(shard.num_images for shard in missing)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of a stage."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
