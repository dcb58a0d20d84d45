"""Apply, step 7: act on many images; the journal has an intent before and an outcome after."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from config import ActingSettings
from tasks.apply03_lock_source import SourceLock
from tasks.errors import ActionsFailedError, DedupError, LockLostError, is_transient
from tasks.journal import Entry, Journal, Operation, Status, now

logger = logging.getLogger(__name__)

RETRY_DELAYS_SECONDS = (1.0, 5.0)

Act = Callable[[Entry, bool], tuple[Status, str]]
"""Acts on one image; is told whether an earlier attempt may have acted on it already."""


def carry_out(
    entries: Sequence[Entry],
    act: Act,
    *,
    operation: Operation,
    journal: Journal,
    lock: SourceLock,
    settings: ActingSettings,
    tried: Collection[str] = (),
) -> None:
    """Act on images, batch by batch; what becomes of one does not stop the others.

    Args:
        entries: What is to happen.
        act: Does it.
        operation: How the journal calls it.
        journal: Takes the intents of a batch before, its outcomes after.
        lock: Checked before every action.
        settings: How many at a time.
        tried: URLs of images that an earlier call may have acted on.

    Raises:
        LockLostError: Somebody else may be acting; what was under way is in doubt.
        ActionsFailedError: A whole batch failed, so the store has; the rest was not tried.
    """
    num_tried = num_failed = 0
    for start in range(0, len(entries), settings.images_per_batch):
        # An undo starts from the outcomes of the apply; its intents have none yet.
        batch = [
            entry.model_copy(update={"status": None, "detail": "", "at": None})
            for entry in entries[start : start + settings.images_per_batch]
        ]
        lock.check()
        journal.append(operation, "intents", batch)
        with ThreadPoolExecutor(settings.workers) as pool:
            futures = [
                pool.submit(_attempt, act, entry, lock, is_in_doubt=entry.image.url in tried)
                for entry in batch
            ]
        outcomes = [future.result() for future in futures]
        journal.append(operation, "outcomes", outcomes)
        num_tried += len(batch)
        num_failed += sum(outcome.status == "failed" for outcome in outcomes)
        logger.info("%s: %d of %d images", operation, num_tried, len(entries))
        is_store_gone = all(outcome.status == "failed" for outcome in outcomes)
        if is_store_gone and (num_tried < len(entries) or num_failed == num_tried):
            raise ActionsFailedError(
                f"stopped after {num_tried} of {len(entries)} images, because none of the last "
                f"{len(batch)} worked: {outcomes[0].detail}. The same command goes on from here."
            )


def _attempt(act: Act, entry: Entry, lock: SourceLock, *, is_in_doubt: bool) -> Entry:
    status, detail = _try_again(act, entry, lock, is_in_doubt=is_in_doubt)
    return entry.model_copy(update={"status": status, "detail": detail, "at": now()})


def _try_again(
    act: Act, entry: Entry, lock: SourceLock, *, is_in_doubt: bool
) -> tuple[Status, str]:
    for delay in (*RETRY_DELAYS_SECONDS, None):
        lock.check()
        try:
            return act(entry, is_in_doubt)
        except LockLostError:
            raise
        except DedupError as error:
            return "refused", str(error)
        except Exception as error:
            if delay is None or not is_transient(error):
                return "failed", f"{type(error).__name__}: {error}"
            time.sleep(delay)
            is_in_doubt = True
    raise AssertionError("the last try returns")
