"""First-use checks on the emulator: they launch what they vouch for, find what is wrong, and blame that alone."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import first_use_kit
import numpy as np
import pytest
from backends import EmuBackend
from emu.arrays import EmuArray, EmuRuntime
from emu.device import EmuError
from wrong_kernels import Wrong

import flashcupy as fc
from flashcupy import reference
from flashcupy.cuda import (
    bwd,
    config,
    config_generic,
    families,
    first_use,
    fwd,
    matrix,
)
from flashcupy.cuda import device as device_module
from flashcupy.cuda.first_use_poison import PoisonCase
from flashcupy.cuda.sources import kernels_dir
from flashcupy.errors import FirstUseError, NotWarmedUpError

_CAPABILITIES = {"generic": (7, 5), "sm80": (8, 0)}
_CASES = [("generic", case) for case in matrix.check_cases(_CAPABILITIES["generic"])]


def _of_tensor_cores(case):
    """Forwards, and the gradients that only this GPU is checked on: bfloat16's in one way, the rest's in the other."""
    if not isinstance(case, first_use.Case):
        return case == PoisonCase("QueryHeads")
    if case.dtype == "float64":
        return False
    return not case.wanted or (case not in _GENERIC_CASES and case.deterministic == (case.dtype != "bfloat16"))


_GENERIC_CASES = set(matrix.check_cases(_CAPABILITIES["generic"]))
_CASES += [("sm80", case) for case in matrix.check_cases(_CAPABILITIES["sm80"]) if _of_tensor_cores(case)]
# A quarter of those with tiles takes a minute and a half; a GPU's `flashcupy check` runs them all.
_EMULATED_CASES = [one for n, one in enumerate(_CASES) if n % 4 == 2 or not isinstance(one[1], first_use.Case)]


def _normal(*shape, dtype=np.float32):
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def _kinds(folder, verdict):
    """Functions of the kernels with such a verdict."""
    facts = [json.loads(path.read_bytes()) for path in folder.rglob("*.verdict")]
    return sorted(
        fact["kernel"].partition("_generic")[0].partition("_t128")[0] for fact in facts if fact["verdict"] == verdict
    )


@pytest.fixture
def new_process(monkeypatch):
    return partial(first_use_kit.forget, monkeypatch)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    with config.use_tiles("small"):
        yield first_use_kit.fresh_gpu(monkeypatch, tmp_path)


@pytest.fixture(params=_CAPABILITIES)
def watched(request, monkeypatch, tmp_path):
    own = first_use_kit.Watched(_CAPABILITIES[request.param])
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(own)])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    return own


# ---- cases -----------------------------------------------------------------------------------------------------------


def test_cases_have_names_of_their_own():
    for capability in _CAPABILITIES.values():
        cases = matrix.check_cases(capability)
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(
            family, case, id=f"{family}-{case.name}", marks=() if n % 32 == 5 and family == "sm80" else pytest.mark.slow
        )
        for n, (family, case) in enumerate(_EMULATED_CASES)
        if n % 4 == 1  # each runs whenever a GPU meets its kernels; every fourth holds the cases themselves
    ],
)
def test_cases_pass(family, case):
    backend = EmuBackend(family)
    with backend.active(), config.use_tiles("small"):
        assert case.run(backend.device) is None


def test_cases_reach_every_kernel_of_the_table(watched):
    major, minor = watched.properties.compute_capability
    for case in matrix.check_cases((major, minor)):
        case.compute(watched)
    expected = {one.name for one in matrix.compile_configs("plain", f"sm_{major}{minor}")}
    assert expected - set(watched.entries) == set()


@pytest.mark.parametrize("wanted", [(), ("q",), ("v",), ("k", "sinks"), ("q", "k", "v", "bias", "sinks")])
@pytest.mark.parametrize("block_size", [None, 16, 256])
@pytest.mark.parametrize("precision", ["highest", "tf32"])
def test_a_check_launches_the_kernels_of_the_call(watched, wanted, block_size, precision):
    x, wide = EmuArray(_normal(2, 33, 24), watched), EmuArray(_normal(2, 33, 80), watched)
    sinks = watched.from_host(_normal(2))
    bias = EmuArray(_normal(33, 33), watched)
    mask = None if block_size is None else fc.BlockMask.causal((33, 33), block_size=block_size)
    options = {"sinks": sinks, "bias": bias, "block_mask": mask, "precision": precision}
    if wanted:
        _, residuals = fc.attention_fwd(x, x, wide, **options)
        watched.entries.clear()
        fc.attention_bwd(wide, residuals, wrt=wanted)
    else:
        fc.attention(x, x, wide, **options)
    call = set(watched.entries)
    spec = fc.build.dense_problem(x, x, wide, fc.options.Options(**options)).spec
    launch = first_use.case_of(spec, wanted, precision).begin(watched)
    watched.entries.clear()
    launch()
    assert set(watched.entries) == call


@pytest.mark.parametrize("watched", ["sm80"], indirect=True)
@pytest.mark.parametrize(("heads", "mask_heads"), [((8, 4), 1), ((8, 2), 2), ((3, 1), 1), ((12, 1), 1), ((8, 2), 8)])
@pytest.mark.parametrize("tiles", ["small", "real"])
def test_a_check_has_tiles_of_as_many_heads_as_the_call(watched, heads, mask_heads, tiles):
    q, k = (EmuArray(_normal(count, 33, 24, dtype=np.float16), watched) for count in heads)
    mask = fc.BlockMask.from_blocks(np.ones((mask_heads, 3, 3), np.bool_), (33, 33), block_size=16)
    spec = fc.build.dense_problem(q, k, k, fc.options.Options(block_mask=mask)).spec
    with config.use_tiles(tiles):
        out, residuals = fc.attention_fwd(q, k, k, block_mask=mask)
        fc.attention_bwd(out, residuals, wrt=("q",))
        call = set(watched.entries)
        watched.entries.clear()
        for wanted in ((), ("q",)):
            first_use.case_of(spec, wanted).begin(watched)()
    assert set(watched.entries) == call


# ---- what is wrong is found, and blamed alone ------------------------------------------------------------------------


@pytest.fixture
def break_generic(monkeypatch):
    """Make the kernels of some kinds wrong; with a feature, only those that have it."""
    choose = config_generic.generic_config

    def apply(*kinds, feature=None):
        def wrong(spec, kernel):
            one = choose(spec, kernel)
            return Wrong(one) if kernel in kinds and (feature is None or feature in one.features) else one

        monkeypatch.setattr(config_generic, "generic_config", wrong)

    return apply


def test_a_wrong_forward_is_condemned_alone(gpu, break_generic, new_process, tmp_path):
    break_generic("fwd", feature="softcap")
    x = gpu.from_host(_normal(2, 40, 24))
    host = {"sinks": np.array([0.5, 1.0], np.float32), "kv_lengths": 33}
    for _ in range(2):  # the second time from the verdicts
        with pytest.raises(FirstUseError, match=r"kernel fwd_generic\w*_wrong failed .* error"):
            fc.attention(x, x, x, softcap=3.0, **host)
        assert _kinds(tmp_path, "failed") == ["fwd"]
        expected, _ = reference.attention(*[x.get()] * 3, **host)
        assert np.allclose(fc.attention(x, x, x, **host).get(), expected, atol=1e-5)
        new_process()
    assert _kinds(tmp_path, "good") == ["fwd", "upload"]


def test_a_right_kernel_is_checked_once(gpu, monkeypatch):
    runs = []
    for kind in {type(case) for _, case in _CASES}:
        begin = kind.begin
        monkeypatch.setattr(kind, "begin", lambda self, on, begin=begin: (runs.append(self.name), begin(self, on))[1])
    for length in (40, 50):
        x = gpu.from_host(_normal(1, length, 23))
        fc.attention(x, x, x, kv_lengths=length)
    assert runs == ["float32-d23-v23-fwd", "upload-float32"]


def test_a_wrong_dq_condemns_what_asks_for_it(gpu, break_generic, new_process):
    break_generic("dq")
    x = gpu.from_host(_normal(1, 40, 24))
    out, residuals = fc.attention_fwd(x, x, x)
    for _ in range(2):
        with pytest.raises(FirstUseError, match="dq of float32"):
            fc.attention_bwd(out, residuals, wrt=("q",))
        expected = reference.attention_bwd(out.get(), *[x.get()] * 3)
        assert np.allclose(fc.attention_bwd(out, residuals, wrt=("v",)).dv.get(), expected.dv, atol=1e-4)
        new_process()
    with pytest.raises(FirstUseError, match=r"kernel dq_generic\w* failed"):
        fc.attention_bwd(out, residuals)


def _calls(gpu):
    """Calls that need an elementwise kernel."""
    x, batch = gpu.from_host(_normal(1, 40, 24)), gpu.from_host(_normal(3, 1, 40, 24))
    cu = gpu.from_host(np.array([0, 7, 20], np.int32))

    def sum_batch():
        out, residuals = fc.attention_fwd(batch, x, x)
        fc.attention_bwd(out, residuals, wrt=("k",))

    return {
        "upload": lambda: fc.attention(x, x, x, kv_lengths=30),
        "fill": lambda: fc.attention_varlen(x, x, x, cu, cu, max_seqlen_q=13, max_seqlen_k=13),
        "sum_batch": sum_batch,
        "combine": lambda: fc.merge_attention(*zip(*[fc.attention(x, x, x, return_lse=True)] * 2, strict=True)),
    }


_BREAK = {
    "upload": ("params.words,", "params.words - 1,"),
    "fill": ("count(params.extents)", "count(params.extents) - 1"),
    "sum_batch": ("double sum = 0", "double sum = 1e-3"),
    "combine": ("sum.top + logarithm(sum.total)", "sum.top"),
}


@pytest.mark.parametrize(
    "function",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("fill", "sum_batch") else name for name in _BREAK],
)
def test_a_broken_elementwise_kernel_is_condemned_alone(gpu, monkeypatch, tmp_path, function):
    translation_unit = config.PlainConfig.translation_unit

    def broken(self):
        unit = translation_unit(self)
        if self.function != function:
            return unit
        include = f"#include <{function}.cu>\n"
        source = (kernels_dir() / f"{function}.cu").read_text()
        assert _BREAK[function][0] in source
        return unit.replace(include, source.replace(*_BREAK[function], 1))

    monkeypatch.setattr(config.PlainConfig, "translation_unit", broken)
    calls = _calls(gpu)
    for _ in range(2):
        with pytest.raises(FirstUseError, match=f"kernel {function}_"):
            calls[function]()
    assert [kind.partition("_float")[0] for kind in _kinds(tmp_path, "failed")] == [function]
    for name, call in calls.items():
        if name != function and (name, function) != ("combine", "upload"):  # a merge uploads
            call()


def test_a_call_of_the_checks_own_shapes_is_refused_too(gpu, break_generic):
    break_generic("fwd", "dq")
    case = first_use.Case("float32", 24, 24)
    for _ in range(2):
        with pytest.raises(FirstUseError):
            case.compute(gpu)
        with pytest.raises(FirstUseError):
            dataclasses.replace(case, wanted=("q",)).compute(gpu)


# ---- two families ----------------------------------------------------------------------------------------------------


@pytest.fixture
def wrong_family(monkeypatch):
    """One that is preferred, and wrong. Its host code chooses configurations of its own."""
    choose = config_generic.generic_config

    def with_wrong_kernels(plan):
        def planned(build, *args, **options):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(config_generic, "generic_config", lambda spec, kernel: Wrong(choose(spec, kernel)))
                return plan(build, *args, **options)

        return planned

    plans = with_wrong_kernels(fwd.plan_generic), with_wrong_kernels(bwd.plan_generic)
    wrong = families.Family("wrong", "a test's", lambda *_: None, *plans)
    monkeypatch.setattr(families, "FAMILIES", {"wrong": wrong, **families.FAMILIES})


def test_the_next_family_serves_where_the_preferred_is_wrong(gpu, wrong_family):
    x = gpu.from_host(_normal(1, 40, 24))
    expected, _ = reference.attention(*[x.get()] * 3, kv_lengths=30)
    with pytest.warns(RuntimeWarning, match="family wrong does not work on cuda:0, generic serves") as caught:
        out, residuals = fc.attention_fwd(x, x, x, kv_lengths=30)
    assert len(caught) == 1
    assert np.allclose(out.get(), expected, atol=1e-5)
    grads = fc.attention_bwd(out, residuals)  # the second warning would be an error
    right = reference.attention_bwd(out.get(), *[x.get()] * 3, kv_lengths=30)
    for a, b in zip(grads[:3], right[:3], strict=True):
        assert np.allclose(a.get(), b, atol=1e-4)


def test_a_family_asked_for_by_name_is_not_replaced(gpu, wrong_family, monkeypatch):
    monkeypatch.setenv("FLASHCUPY_FAMILY", "wrong")
    x = gpu.from_host(_normal(1, 40, 24))
    with pytest.raises(FirstUseError):
        fc.attention(x, x, x)
    monkeypatch.setenv("FLASHCUPY_FAMILY", "generic")
    explained = fc.explain(x, x, x)
    assert "wrong" not in explained.config
    assert explained.reason.startswith("family generic: ")
    assert "not wrong: FLASHCUPY_FAMILY asks for another" in explained.reason
    monkeypatch.setenv("FLASHCUPY_FAMILY", "best")
    for call in (fc.attention, fc.explain):
        with pytest.raises(ValueError, match="FLASHCUPY_FAMILY is 'best'"):
            call(x, x, x)


# ---- whose fault it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError("full"), RuntimeError("somebody else's")])
def test_an_error_from_elsewhere_leaves_no_verdict(gpu, monkeypatch, tmp_path, error):
    def fail(array):
        raise error

    x = gpu.from_host(_normal(1, 40, 24))
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "to_host", fail)
        with pytest.raises(type(error)) as caught:
            fc.attention(x, x, x)
    assert caught.value is error
    assert list(tmp_path.rglob("*.verdict")) == []
    fc.attention(x, x, x)


def test_a_second_fault_of_the_kernel_condemns_it(gpu, monkeypatch, new_process, tmp_path):
    def fault(*args):
        raise EmuError("bounds: beyond an array")

    x = gpu.from_host(_normal(1, 40, 24))
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "launch", fault)
        for verdict in ("fault", "failed"):
            with pytest.raises(FirstUseError, match="EmuError: bounds"):
                fc.attention(x, x, x)
            assert _kinds(tmp_path, verdict) == ["fwd"]
            new_process()
    with pytest.raises(FirstUseError, match="EmuError: bounds"):
        fc.attention(x, x, x)


# ---- warming up ------------------------------------------------------------------------------------------------------


def test_after_a_warmup_lengths_packing_and_merges_can_be_captured(gpu):
    x, cu = gpu.from_host(_normal(1, 40, 24)), gpu.from_host(np.array([0, 7, 20], np.int32))
    fc.warmup(x, x, x)
    gpu.capturing = True
    parts = [fc.attention(x, x, x, kv_lengths=30, return_lse=True)] * 2
    fc.merge_attention(*zip(*parts, strict=True))
    fc.attention_varlen(x, x, x, cu, cu, max_seqlen_q=13, max_seqlen_k=13)
    with pytest.raises(NotWarmedUpError, match=r"while a CUDA graph is captured.*: call it before the capture"):
        fc.warmup(x, x, x)


def test_explain_counts_what_brings_host_operands(watched):
    x = EmuArray(_normal(1, 33, 24), watched)
    fc.attention(x, x, x)
    assert fc.explain(x, x, x).compiled
    assert not fc.explain(x, x, x, kv_lengths=30).compiled
    fc.attention(x, x, x, kv_lengths=30)
    assert fc.explain(x, x, x, kv_lengths=30).compiled
