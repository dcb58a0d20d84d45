"""Keeps the log readable: an error that explains itself needs no stack trace."""

import logging

from tasks.errors import DedupError

OWN_LOGGERS = ("tasks", "flows")
_PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def prepare_logs() -> None:
    """Show our own lines, and Prefect's report of a `DedupError` as one line.

    All other errors keep their stack trace. Prefect forwards our loggers to its server when
    PREFECT_LOGGING_EXTRA_LOGGERS names them, but leaves their level to us.
    """
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in _PREFECT_LOGGERS:
        prefect_logger = logging.getLogger(name)
        if _without_explained_trace not in prefect_logger.filters:
            prefect_logger.addFilter(_without_explained_trace)


def _without_explained_trace(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], DedupError):
        record.exc_info = None
    return True
