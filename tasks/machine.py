"""What the machine at hand computes in, and the number format that suits it."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from config import FeatureSettings
from tasks.errors import EngineError
from tasks.quiet_tensorflow import tensorflow

Engine = Literal["tensorflow", "openvino"]
Dtype = Literal["float32", "bfloat16", "int8"]

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_FLAGS_OF = {"float32": frozenset[str](), "bfloat16": _BFLOAT16_FLAGS, "int8": _INT8_FLAGS}
_BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Machine:
    """What an engine can count on."""

    processor_flags: frozenset[str]
    """Instruction sets of the processor, named as in `/proc/cpuinfo`."""
    gpu_capabilities: tuple[tuple[int, int], ...] = ()
    """Compute capability of each GPU that TensorFlow sees."""


@lru_cache
def this_machine() -> Machine:
    """Look at the machine this runs on.

    TensorFlow is asked, which takes seconds, only where the system has an NVIDIA device at all.
    """
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    return Machine(_this_processor(), _gpu_capabilities() if has_gpu else ())


def processor_flags(cpuinfo: str) -> frozenset[str]:
    """The instruction sets that the text of `/proc/cpuinfo` lists; none where it lists none."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def computes_in(machine: Machine, engine: Engine, dtype: Dtype) -> bool:
    """Tell whether a machine has the instructions for a number format, so that it is fast in it."""
    if engine == "tensorflow" and machine.gpu_capabilities:
        return dtype == "float32" or min(machine.gpu_capabilities) >= _BFLOAT16_CAPABILITY
    flags = _FLAGS_OF[dtype]
    return not flags or bool(flags & machine.processor_flags)


def resolved(features: FeatureSettings, machine: Machine) -> FeatureSettings:
    """Replace the number format `auto` by one that has a name; settings that name one stay.

    Args:
        features: Settings of a run.
        machine: The machine that it is resolved for.
    """
    if features.dtype != "auto":
        return features
    is_fast = computes_in(machine, features.engine, "bfloat16")
    return features.model_copy(update={"dtype": "bfloat16" if is_fast else "float32"})


def named_format(features: FeatureSettings) -> Dtype:
    """The number format of settings that name one.

    Raises:
        ValueError: It is `auto` still, which would mix formats in one feature store.
    """
    if features.dtype == "auto":
        raise ValueError("features.dtype is auto, expected one that `resolved` has named")
    return features.dtype


def require_format(machine: Machine, engine: Engine, dtype: Dtype) -> None:
    """Refuse a number format that a machine would only emulate.

    Raises:
        EngineError: It lacks the instructions; names those that were expected.
    """
    if computes_in(machine, engine, dtype):
        return
    expected = f"a processor with one of {', '.join(sorted(_FLAGS_OF[dtype]))}"
    found = "one with none of them"
    if engine == "tensorflow":
        expected += " or GPUs of compute capability 8.0"
    if engine == "tensorflow" and machine.gpu_capabilities:
        major, minor = min(machine.gpu_capabilities)
        found = f"a GPU of {major}.{minor}"
    raise EngineError(f"{dtype} with {engine} needs {expected}, found {found}: use float32")


def _this_processor() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    return processor_flags(cpuinfo.read_text()) if cpuinfo.exists() else frozenset()


def _gpu_capabilities() -> tuple[tuple[int, int], ...]:
    config = tensorflow().config
    details = map(config.experimental.get_device_details, config.list_physical_devices("GPU"))
    return tuple(found.get("compute_capability", (0, 0)) for found in details)
