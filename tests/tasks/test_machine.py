"""Number formats: what a machine computes in, what `auto` becomes, and what is refused."""

from pathlib import Path

import pytest

from config import FeatureSettings
from tasks.errors import EngineError
from tasks.machine import (
    Machine,
    computes_in,
    named_format,
    processor_flags,
    require_format,
    resolved,
    this_machine,
)

OLD = Machine(frozenset({"sse4_2", "avx2", "avx512f"}))
NEW = Machine(frozenset({"avx2", "avx512_bf16", "avx512_vnni"}))
AMX = Machine(frozenset({"amx_bf16", "amx_int8"}))
LAPTOP = Machine(frozenset({"avx2", "avx_vnni"}))
TURING = Machine(NEW.processor_flags, ((7, 5),))
HOPPER = Machine(OLD.processor_flags, ((9, 0),))
MIXED = Machine(NEW.processor_flags, ((9, 0), (7, 5)))


def test_flags_are_those_of_the_first_processor() -> None:
    cpuinfo = "processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t: x\n"
    assert processor_flags(cpuinfo) == {"fpu", "avx2", "avx512_bf16"}


def test_processor_that_lists_no_flags_has_none() -> None:
    assert processor_flags("processor\t: 0\nFeatures\t: fp asimd\n") == frozenset()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="not Linux")
def test_this_machine_is_one() -> None:
    assert computes_in(this_machine(), "tensorflow", "float32")


@pytest.mark.parametrize(
    ("machine", "engine", "bfloat16"),
    [
        (OLD, "tensorflow", False),
        (OLD, "openvino", False),
        (NEW, "tensorflow", True),
        (NEW, "openvino", True),
        (AMX, "openvino", True),
        (LAPTOP, "tensorflow", False),
        # TensorFlow takes the GPU, whatever the processor could do; OpenVINO does not.
        (TURING, "tensorflow", False),
        (TURING, "openvino", True),
        (HOPPER, "tensorflow", True),
        (HOPPER, "openvino", False),
        (MIXED, "tensorflow", False),
    ],
)
def test_auto_is_bfloat16_where_it_is_fast(machine: Machine, engine: str, bfloat16: bool) -> None:
    settings = FeatureSettings(engine=engine, image_size=112)
    found = resolved(settings, machine)
    assert found.dtype == ("bfloat16" if bfloat16 else "float32")
    assert found == FeatureSettings(engine=engine, image_size=112, dtype=found.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("machine", [OLD, NEW])
def test_named_format_stays_whatever_the_machine(machine: Machine, dtype: str) -> None:
    assert resolved(FeatureSettings(dtype=dtype), machine) == FeatureSettings(dtype=dtype)


def test_format_without_a_name_is_no_format() -> None:
    with pytest.raises(ValueError, match=r"features\.dtype is auto"):
        named_format(FeatureSettings())
    assert named_format(FeatureSettings(dtype="float32")) == "float32"


@pytest.mark.parametrize("machine", [NEW, AMX, LAPTOP])
def test_eight_bits_need_instructions_that_multiply_them(machine: Machine) -> None:
    require_format(machine, "openvino", "int8")


def test_eight_bits_without_them_are_refused() -> None:
    with pytest.raises(EngineError) as refusal:
        require_format(OLD, "openvino", "int8")
    assert str(refusal.value) == (
        "int8 with openvino needs a processor with one of amx_int8, avx512_vnni, avx_vnni, "
        "found one with none of them: use float32"
    )


def test_bfloat16_that_would_be_emulated_is_refused() -> None:
    with pytest.raises(EngineError) as refusal:
        require_format(LAPTOP, "tensorflow", "bfloat16")
    assert str(refusal.value) == (
        "bfloat16 with tensorflow needs a processor with one of amx_bf16, avx512_bf16 or GPUs of "
        "compute capability 8.0, found one with none of them: use float32"
    )
    with pytest.raises(EngineError, match=r"found a GPU of 7\.5: use float32"):
        require_format(TURING, "tensorflow", "bfloat16")


def test_float32_is_never_refused() -> None:
    for machine in (OLD, TURING, Machine(frozenset())):
        require_format(machine, "tensorflow", "float32")
        require_format(machine, "openvino", "float32")
