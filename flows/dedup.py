"""The nightly flow: from a folder of images to a manifest of what is redundant."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from zoneinfo import ZoneInfo

from prefect import flow
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run

from config import ApplyConfig, DedupConfig
from flows.fan_out import Failure, fan_out
from flows.logs import prepare_logs
from flows.progress import watcher
from tasks.errors import NightIncompleteError, ServerError
from tasks.machine import resolved, this_machine
from tasks.references import Collection, FeatureFile, Index, Neighbors, SearchRange, Shard
from tasks.stage01_list_images import list_images
from tasks.stage02_plan_shards import plan_shards
from tasks.stage03_embed_shard import embed_shard
from tasks.stage04_collect_features import collect_features
from tasks.stage05_build_index import build_index
from tasks.stage06_find_neighbors import find_neighbors, measure_recall
from tasks.stage07_cluster_images import cluster_images
from tasks.stage08_choose_keepers import choose_keepers
from tasks.stage09_write_manifest import write_manifest
from tasks.stage10_write_report import write_report
from tasks.summary import Summary

logger = logging.getLogger(__name__)

SEARCH_DEPTHS = (1, 8, 0)
"""Depths tried one after the other until the recall is good enough; 0 compares every pair."""

MAX_FAILURES_NAMED = 10


@flow(name="dedup", retries=0, validate_parameters=True)
def dedup(config: DedupConfig) -> Summary:
    """Find what is redundant among the images of one source and write the manifest.

    Args:
        config: What to read, where to write, and how to decide.

    Raises:
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
        inventory = list_images(config)
        shards = plan_shards(inventory, config)
    with stopwatch(seconds, "embed"):
        feature_files = embed_shards(shards, config)
    with stopwatch(seconds, "index"):
        collection = collect_features(inventory, config)
        index = build_index(collection, config)
    with stopwatch(seconds, "neighbors"):
        neighbors = search_neighbors(collection, index, config)
    with stopwatch(seconds, "cluster"):
        clusters = cluster_images(neighbors, collection, config)
        keepers = choose_keepers(clusters, neighbors, collection, config)
    with stopwatch(seconds, "manifest"):
        manifest = write_manifest(inventory, collection, neighbors, clusters, keepers, config)
    num_embedded = sum(file.num_embedded for file in feature_files)
    summary = write_report(manifest, config, num_embedded, seconds)
    hand_over(summary, config)
    return summary


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
    watcher().start(sum(shard.num_images for shard in shards))
    outcome = fan_out(
        task,
        {"shard": shards},
        {"config": config},
        execution,
        on_done=lambda shard: watcher().advance(shard.num_images),
    )
    for failure in outcome.failures:
        logger.error("shard %d failed: %r", failure.reference.number, failure.error)
    if outcome.failures:
        message = describe_failures(outcome.failures, num_shards=len(shards))
        if not config.allow_partial:
            raise NightIncompleteError(message)
        logger.warning("%s The manifest will say that the night is not complete.", message)
    return outcome.results


def search_neighbors(collection: Collection, index: Index, config: DedupConfig) -> Neighbors:
    """Search deeper until the measured recall is good enough."""
    settings, execution = config.neighbors, config.execution
    fixed = {"collection": collection, "index": index, "config": config}
    is_small = collection.largest_partition <= settings.exact_up_to
    for depth in (0,) if is_small else SEARCH_DEPTHS:
        searches = [
            SearchRange(start, min(start + execution.items_per_search, collection.num_items), depth)
            for start in range(0, collection.num_items, execution.items_per_search)
        ]
        outcome = fan_out(find_neighbors, {"search": searches}, fixed, execution)
        if outcome.failures:
            raise outcome.failures[0].error
        recall = measure_recall(outcome.results, collection, config)
        logger.info("search depth %d: recall %.4f of the pairs within eps", depth, recall)
        if recall >= settings.min_recall:
            break
    return Neighbors(edge_files=tuple(outcome.results), recall=recall, depth=depth)


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
            idempotency_key=f"{flow_run.id}-apply",
        )
    except ObjectNotFound:
        raise ServerError(
            "the config has an apply section, but there is no deployment apply/main: deploy "
            "deployments/prefect.yaml"
        ) from None
    # Prefect types the run as one that might be a coroutine; here it never is.
    logger.info("started apply/main as %s", run.name)  # type: ignore[union-attr]


def describe_failures(failures: list[Failure[Shard]], *, num_shards: int) -> str:
    """Name the failed shards with their causes in one line; of very many, only the first."""
    num_images = sum(failure.reference.num_images for failure in failures)
    shards = "; ".join(
        f"shard {failure.reference.number} ({failure.reference.num_images} images from "
        f"{failure.reference.first_url}): {type(failure.error).__name__}: {failure.error}"
        for failure in failures[:MAX_FAILURES_NAMED]
    )
    if len(failures) > MAX_FAILURES_NAMED:
        shards += f"; and {len(failures) - MAX_FAILURES_NAMED} more, each with a line in the log"
    return (
        f"{len(failures)} of {num_shards} shards failed, {num_images} images are not embedded: "
        f"{shards}. The others kept their work: the same run again embeds only what is missing."
    )


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of a stage."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
