"""Imports TensorFlow late, once and without its start-up noise."""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

# What the C++ side prints before any log level is read, and so cannot be told to keep to itself:
# information, warnings, and the news that a machine without a GPU has no CUDA.
_NOISE = re.compile(rb"^[IW]\d{4} |^E\d{4} .*cuInit|^WARNING: All log messages before absl")
_import_lock = threading.Lock()


def tensorflow() -> Any:
    """The `tensorflow` module. The first call of a process takes seconds and some 800 MB."""
    with _import_lock:
        return _tensorflow()


@lru_cache
def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _without_noise():
        import tensorflow

        # Standard output belongs to `dedup --json`; Keras would draw its progress bars there.
        tensorflow.keras.utils.disable_interactive_logging()
        _prepare_gpus(tensorflow)
    return tensorflow


def _prepare_gpus(tensorflow: Any) -> None:
    gpus = tensorflow.config.list_physical_devices("GPU")
    for gpu in gpus:
        # The default takes all memory of the GPU, and a second worker would get none.
        tensorflow.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        # A GPU would round float32 to 10 bits, and pick its algorithms by how fast they ran.
        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
        tensorflow.config.experimental.enable_op_determinism()


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what is written to standard error and pass on all of it but the noise."""
    sys.stderr.flush()
    real_stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real_stderr, 2)
            os.close(real_stderr)
            held_back.seek(0)
            for line in held_back:
                if not _NOISE.match(line):
                    os.write(2, line)
