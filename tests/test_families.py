"""Which family serves a call, each direction on its own; what the environment asks for; what happens if one fails."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from backends import EMU_CACHE
from emu.arrays import EmuArray, EmuRuntime
from emu.device import EmuDevice
from wrong_kernels import Wrong

import flashcupy as fc
from flashcupy import reference
from flashcupy.cuda import config, fallback, families, first_use, serve, table_sm80, verdicts
from flashcupy.cuda import device as device_module
from flashcupy.cuda.calls import Call
from flashcupy.cuda.launch import PlanCache
from flashcupy.errors import FirstUseError, UnsupportedError


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """An A100 that no kernel has run on."""
    own = EmuDevice(compute_capability=(8, 0))
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(own)])
    for name in ("FLASHCUPY_CHECK", "FLASHCUPY_FAMILY", "FLASHCUPY_FALLBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(verdicts, "_good", set())
    monkeypatch.setattr(verdicts, "_unwritten", {})
    monkeypatch.setattr(serve, "_plans", PlanCache())
    monkeypatch.setattr(fallback, "_told", set())
    with config.use_tiles("small"):
        yield own


@pytest.fixture
def unchecked(gpu, monkeypatch):
    """The same, with kernels that need no check, and are compiled once for all runs."""
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(EMU_CACHE))
    return gpu


@pytest.fixture
def wrong_sm80(monkeypatch):
    choose = table_sm80.sm80_config
    monkeypatch.setattr(table_sm80, "sm80_config", lambda *arguments: Wrong(choose(*arguments)))


def _array(device, *shape, dtype=np.float32):
    return device.from_host(np.random.default_rng(shape).standard_normal(shape).astype(dtype))


def _unaligned(device, *shape, dtype=np.float32):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = device.empty((count + 1,), np.dtype(np.uint8))._host
    raw[...] = 0
    return EmuArray(raw[1:].view(dtype).reshape(shape), device)


def _explain(device, dtype=np.float32, dim=24, **options):
    x = _array(device, 2, 40, dim, dtype=dtype)
    return fc.explain(x, x, x, **options)


# ---- what it serves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [
        ("float16", "highest", "f16"),
        ("float16", "tf32", "f16"),
        ("float32", "highest", "split_tf32"),
        ("float32", "tf32", "tf32"),
    ],
)
def test_tensor_cores_multiply_what_the_call_permits(gpu, dtype, precision, kind):
    told = _explain(gpu, dtype, precision=precision)
    assert told.config.startswith(f"fwd_sm80_{kind}_o")
    assert told.reason == "family sm80: tensor cores, from compute capability 8.0 on"


@pytest.mark.parametrize(
    ("dtype", "precision", "least"), [("float16", "highest", 1), ("float32", "tf32", 1), ("float32", "highest", 16)]
)
def test_the_narrowest_heads_that_tensor_cores_serve(gpu, dtype, precision, least):
    assert _explain(gpu, dtype, least, precision=precision).config.startswith("fwd_sm80_")


def test_operands_at_any_address_and_values_of_any_width_are_served(gpu):
    q, k, v = _unaligned(gpu, 2, 40, 256), _unaligned(gpu, 2, 50, 256), _unaligned(gpu, 2, 50, 700)
    mask, bias = gpu.from_host(np.ones((40, 50), np.bool_)), _array(gpu, 40, 50, dtype=np.float16)
    assert fc.explain(q, k, v, mask=mask, bias=bias).config.startswith("fwd_sm80_split_tf32_")


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_mask_in_single_bytes_is_aligned_wherever_it_lies(gpu, name):
    options = {"mask": _unaligned(gpu, 40, 40, dtype=np.bool_), "bias": _unaligned(gpu, 40, 40)}
    assert ("sm80" in _explain(gpu, **{name: options[name]}).config) == (name == "mask")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"dtype": "float64"}, "has no float64"),
        ({"dim": 257}, "takes a head_dim of at most 256, this one is 257"),
        ({"dim": 15}, "takes float32 at full accuracy from a head_dim of 16 on, this one is 15"),
        ({"bias": "float64"}, "takes no bias of float64"),
        ({"bias": "unaligned"}, "takes no bias whose elements lie at any address"),
    ],
)
def test_what_it_leaves_to_others_is_told(gpu, call, reason):
    biases = {"float64": _array(gpu, 40, 40, dtype=np.float64), "unaligned": _unaligned(gpu, 40, 40)}
    own = {name: biases.get(value, value) for name, value in call.items()}
    told = _explain(gpu, **own)
    assert told.config.startswith("fwd_generic_")
    assert told.reason.endswith(f"; not sm80: {reason}")


def test_older_and_smaller_gpus_are_left_to_others(gpu):
    x = _array(gpu, 2, 40, 24)
    request = Call(fc.build.dense_problem(x, x, x, fc.options.Options())).request()
    for change, reason in (
        ({"compute_capability": (7, 5)}, "needs compute capability 8.0, this GPU has 7.5"),
        ({"shared_memory": 64 << 10}, "needs 101376 bytes of shared memory a block, this GPU has 65536"),
    ):
        other = request._replace(properties=dataclasses.replace(request.properties, **change))
        assert families.to_try(request, "forward") == ["sm80", "generic"]
        assert families.to_try(other, "forward") == ["generic"]
        assert families.choose(other, "forward")[1].endswith(f"not sm80: {reason}")
        with families.only("sm80"), pytest.raises(UnsupportedError, match=f"sm80: {reason}"):
            families.to_try(other, "forward")


@pytest.mark.parametrize(
    ("dtype", "dim", "v_dim", "reason"),
    [
        ("float16", 40, 264, "takes v of at most 256 columns in a backward, this one has 264"),
        ("float32", 136, 40, "takes float32 of at most 128 columns in a backward: more chunks"),
        ("float32", 40, 136, "takes float32 of at most 128 columns in a backward: more chunks"),
    ],
)
def test_a_backward_that_it_leaves_to_others(gpu, dtype, dim, v_dim, reason):
    q, v = _array(gpu, 2, 40, dim, dtype=dtype), _array(gpu, 2, 40, v_dim, dtype=dtype)
    request = Call(fc.build.dense_problem(q, q, v, fc.options.Options())).request()
    assert families.to_try(request, "forward") == ["sm80", "generic"]
    assert families.to_try(request, "backward") == ["generic"]
    assert f"not sm80: {reason}" in families.choose(request, "backward")[1]
    assert fc.explain(q, q, v).reason.endswith("; backward by family generic")
    with families.only("sm80"), pytest.raises(UnsupportedError, match=f"sm80: {reason}"):
        families.to_try(request, "backward")


@pytest.mark.parametrize(
    ("dtype", "dim", "kept"),
    [("float32", 24, "fwd_sm80"), ("float32", 136, "fwd_generic"), ("float16", 136, "fwd_sm80")],
)
def test_a_float32_forward_is_of_the_family_of_its_backward(unchecked, monkeypatch, dtype, dim, kept):
    x = _array(unchecked, 1, 40, dim, dtype=dtype)
    assert _entries(unchecked, monkeypatch, lambda: fc.attention(x, x, x)) == ["fwd_sm80"]
    assert _entries(unchecked, monkeypatch, lambda: fc.attention_fwd(x, x, x)) == [kept]


# ---- FLASHCUPY_FAMILY ------------------------------------------------------------------------------------------------


def _entries(device, monkeypatch, call):
    seen = []
    launch = type(device).launch
    monkeypatch.setattr(
        device, "launch", lambda kernel, *rest: (seen.append(kernel.name), launch(device, kernel, *rest))
    )
    call()
    return [re.split("_f16|_f32|_split", name)[0] for name in seen if "upload" not in name]


@pytest.mark.parametrize(("family", "serves"), [("sm80", "sm80"), ("generic", "generic"), ("", "sm80")])
def test_a_name_asks_for_both_directions(unchecked, monkeypatch, family, serves):
    monkeypatch.setenv("FLASHCUPY_FAMILY", family)
    x = _array(unchecked, 1, 40, 24, dtype=np.float16)
    results = []
    forwards = _entries(unchecked, monkeypatch, lambda: results.extend(fc.attention_fwd(x, x, x)))
    assert forwards == [f"fwd_{serves}"]
    out, residuals = results
    backwards = _entries(unchecked, monkeypatch, lambda: fc.attention_bwd(out, residuals, wrt=("q",)))
    assert backwards[-1] == f"dq_{serves}"
    told = fc.explain(x, x, x)
    assert told.config.startswith(f"fwd_{serves}")
    assert told.reason.startswith(f"family {family or 'sm80'}: ")
    assert ("not sm80: FLASHCUPY_FAMILY asks for another" in told.reason) == (family == "generic")
    assert "backward by family" not in told.reason


def test_a_family_that_cannot_serve_the_call_is_refused_by_name(unchecked, monkeypatch):
    x = _array(unchecked, 1, 40, 24, dtype=np.float64)
    out, residuals = fc.attention_fwd(x, x, x)
    monkeypatch.setenv("FLASHCUPY_FAMILY", "sm80")
    with pytest.raises(ValueError, match="FLASHCUPY_FAMILY is 'sm80', expected one that serves this call: generic"):
        fc.attention(x, x, x)
    with pytest.raises(ValueError, match="FLASHCUPY_FAMILY is 'sm80', expected one that serves this call: generic"):
        fc.attention_bwd(out, residuals)
    monkeypatch.setenv("FLASHCUPY_FAMILY", "sm8")
    for call in (lambda: fc.attention(x, x, x), lambda: fc.attention_bwd(out, residuals)):
        with pytest.raises(ValueError, match="FLASHCUPY_FAMILY is 'sm8'"):
            call()


# ---- first use -------------------------------------------------------------------------------------------------------


def test_each_kernel_is_checked_at_its_own_precision(gpu, monkeypatch):
    runs = []
    begin = first_use.Case.begin
    monkeypatch.setattr(first_use.Case, "begin", lambda self, on: (runs.append(self.name), begin(self, on))[1])
    x = _array(gpu, 1, 40, 23)
    for precision in ("tf32", "highest", "tf32"):
        fc.attention(x, x, x, precision=precision)
    out, residuals = fc.attention_fwd(x, x, x, precision="tf32")
    fc.attention_bwd(out, residuals, wrt=("q",))
    assert runs == ["tf32-d23-v23-fwd", "float32-d23-v23-fwd", "tf32-d23-v23-bwd-q-deterministic"]


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_where_it_is_wrong_the_next_family_serves(gpu, wrong_sm80, dtype):
    x = _array(gpu, 1, 40, 24, dtype=dtype)
    match = r"family sm80 does not work on cuda:0, generic serves .* error \d\S+, \S+ is allowed"
    with pytest.warns(RuntimeWarning, match=match) as caught:
        fc.attention(x, x, x)
    assert len(caught) == 1
    out, residuals = fc.attention_fwd(x, x, x)
    expected, _ = reference.attention(*[x.get()] * 3)
    assert np.allclose(out.get(), expected, atol=1e-5 if dtype == "float32" else 1e-2)
    fc.attention_bwd(out, residuals)  # a second warning would be an error


@pytest.mark.parametrize("variable", [{"FLASHCUPY_FAMILY": "sm80"}, {"FLASHCUPY_FALLBACK": "error"}])
def test_asked_for_by_name_it_is_not_replaced(gpu, wrong_sm80, monkeypatch, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    x = _array(gpu, 1, 40, 24)
    for _ in range(2):  # the second time from the verdict
        with pytest.raises(FirstUseError, match=r"kernel fwd_sm80_split_tf32_\w*_wrong failed .* error"):
            fc.attention(x, x, x)
