"""The candidates of the GPU benchmark, where their libraries run on a CPU, and why others are missing."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from host_gpu import HostGpu
from oracles import oracle

import flashcupy
from bench import compile_cases, sanitize_case
from bench.gpu import operands
from bench.gpu.candidates import brought, jax_cudnn, masks, naive, ours, torch_flex, torch_sdpa, torch_tools
from bench.gpu.candidates.base import UnavailableError
from bench.gpu.measure import largest_error, reason
from bench.gpu.pattern import Pattern
from bench.gpu.predicted import ran_backward
from bench.gpu.problem import Problem
from bench.gpu.reference import expected
from flashcupy.cuda.first_use import Case
from flashcupy.cuda.first_use_plain import PlainCase

TINY = Problem("forward", "float32", 2, 4, 48, 48, 16, 4)
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "backward", "forward + backward"])


def prepared_error(prepare, problem):
    shared = operands.make(problem, np)
    prepared = prepare(problem, shared, HostGpu())
    with prepared.around():
        result = prepared.call()
    prepared.wait(result)
    return largest_error(np, prepared.head(result), expected(problem, shared))


@DIRECTIONS
@pytest.mark.parametrize("causal", [False, True])
def test_naive_is_right(direction, causal):
    problem = replace(TINY, direction=direction, causal=causal)
    assert prepared_error(naive.prepare, problem) < 1e-5


@DIRECTIONS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_math_is_right(direction, dtype):
    oracle("torch")
    problem = replace(TINY, direction=direction, dtype=dtype, causal=True, kv_heads=2)
    limit = {"float32": 1e-5, "bfloat16": 2.0**-5}[dtype]
    assert prepared_error(torch_sdpa.candidates()[3].prepare, problem) < limit
    biased = replace(problem, causal=False, options=("bias",))
    assert prepared_error(torch_sdpa.candidates()[3].prepare, biased) < limit


@DIRECTIONS
def test_jax_is_right(direction):
    oracle("jax")
    problem = replace(TINY, direction=direction, dtype="bfloat16", causal=True, kv_heads=2)
    prepare = jax_cudnn.candidates()[0].prepare.func
    assert prepared_error(lambda *arguments: prepare("xla", *arguments), problem) < 2.0**-5
    windowed = replace(problem, causal=False, kv_heads=4, options=("window",))
    assert prepared_error(lambda *arguments: prepare("xla", *arguments), windowed) < 2.0**-5


def test_flex_gets_the_blocks_of_our_mask():
    oracle("torch")
    for pattern in (Pattern("random", 0.4, 16), Pattern("window", 0.3, 16), Pattern("skewed", 0.2, 16)):
        problem = replace(TINY, q_length=96, kv_length=96, pattern=pattern)
        mask = torch_flex.block_mask(problem, "cpu")
        full, partial = pattern.grids(96, 96)
        np.testing.assert_array_equal(mask.to_dense()[0, 0].numpy().astype(bool), full | partial)
        assert mask.full_kv_num_blocks.sum() == full.sum()


def test_masks_are_built_of_the_blocks_of_the_pattern():
    problem = replace(TINY, q_length=96, kv_length=96, pattern=Pattern("random", 0.4, 16))
    *own, torch_top_k = masks.candidates()
    for candidate in own:
        assert prepared_error(candidate.prepare, problem) < 1e-5
    with pytest.raises(UnavailableError, match="as many blocks in each row"):
        masks.scores_of(replace(problem, pattern=Pattern("skewed", 0.2, 16)))
    oracle("torch")
    mask = torch_top_k.prepare(problem, operands.make(problem, np), HostGpu()).call()
    full, _ = problem.pattern.grids(96, 96)
    np.testing.assert_array_equal(mask.to_dense()[0].numpy().astype(bool), np.broadcast_to(full, (4, 6, 6)))


@pytest.mark.parametrize("direction", ["backward", "forward + backward"])
def test_our_backward_is_right_either_way(monkeypatch, direction):
    asked, backward = [], flashcupy.attention_bwd

    def recorded(dout, residuals, *, deterministic):
        asked.append(deterministic)
        return backward(dout, residuals, deterministic=deterministic)

    monkeypatch.setattr(flashcupy, "attention_bwd", recorded)
    problem = replace(TINY, direction=direction, causal=True, kv_heads=2)
    for candidate in (*ours.candidates(), *ours.deterministic()):
        assert prepared_error(candidate.prepare, problem) < 1e-5
    assert asked == [False, True]


def test_a_packed_backward_is_right():
    problem = replace(TINY, direction="forward + backward", batch=1, sequences=(16, 32))
    for candidate in (*ours.candidates(), *ours.deterministic()):
        assert prepared_error(candidate.prepare, problem) < 1e-5


def test_torch_is_asked_for_a_deterministic_backward_outside_the_clock_only():
    torch = oracle("torch")
    problem = replace(TINY, direction="backward", causal=True)
    (candidate,) = torch_sdpa.deterministic()
    assert candidate.name == "torch flash deterministic"
    prepared = torch_sdpa.prepare_deterministic("MATH", problem, operands.make(problem, np), HostGpu())
    with prepared.around():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        result = prepared.call()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert largest_error(np, prepared.head(result), expected(problem, operands.make(problem, np))) < 1e-5


def told(config, reason="", backend="cuda", dtype="bfloat16"):
    """What `flashcupy.explain` says of a call on a GPU."""
    shape = ((2, 4, 48, 128), dtype)
    return replace(flashcupy.explain(shape, shape, shape), backend=backend, config=config, reason=reason)


def test_kernels_of_a_backward_are_told(monkeypatch):
    device = SimpleNamespace(properties=SimpleNamespace(shared_memory=227 << 10))
    monkeypatch.setattr("flashcupy.cuda.device.runtime", lambda: SimpleNamespace(device=lambda ordinal: device))
    gpu = type("Gpu", (HostGpu,), {"name": "cuda:0"})()

    def names(direction, deterministic, explanation):
        return ours.kernels(replace(TINY, direction=direction), explanation, gpu, deterministic=deterministic)

    own = told("fwd_sm80_bf16_o128k64")
    together = names("backward", False, own)
    assert ran_backward(together).kernel == "dkvq"
    assert [ran_backward(name).kernel for name in names("backward", True, own).split(" + ")] == ["dkv", "dq"]
    assert names("forward + backward", False, own) == f"fwd_sm80_bf16_o128k64 + {together}"
    words = names("backward", False, told("fwd_sm80_tf32", dtype="float32"))
    assert [ran_backward(name).kernel for name in words.split(" + ")] == ["dkv", "dq"]
    assert not names("backward", False, told("fwd_generic_f32"))
    assert not names("backward", False, told("fwd_sm80_bf16", "family sm80; backward by family generic"))
    assert not names("backward", False, told("blocks", backend="numpy"))


@pytest.mark.slow  # compiles C++
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's compiler of itself
@pytest.mark.parametrize("option", ["softcap", "alibi", "window", "pattern"])
def test_flex_is_right(option):
    oracle("torch")
    problem = replace(TINY, q_length=128, kv_length=128)
    pattern = Pattern("window", 0.3, 16)
    problem = replace(problem, pattern=pattern) if option == "pattern" else replace(problem, options=(option,))
    assert prepared_error(torch_flex.prepare, problem) < 1e-5


@pytest.mark.parametrize(
    ("prepare", "changes", "why"),
    [
        (naive.prepare, {"options": ("alibi",)}, "has no equal of alibi"),
        (ours.prepare_deterministic, {}, "differs in the backward only"),
        (torch_sdpa.deterministic()[0].prepare, {"dtype": "float16"}, "differs in the backward only"),
        (naive.prepare, {"q_length": 40000, "kv_length": 40000}, "its scores take more than 4 GiB"),
        (torch_flex.prepare, {"dtype": "float64"}, "takes no float64"),
        (torch_sdpa.candidates()[0].prepare, {}, "takes float16 and bfloat16 only"),
        (torch_sdpa.candidates()[3].prepare, {"pattern": Pattern("random", 0.5, 16)}, "has no block-sparse attention"),
        (brought.prepare_fa3, {"dtype": "float16"}, "FLASHCUPY_PEERS names no folder with its files"),
        (brought.prepare_fa4, {"sequences": (16, 32)}, "packed sequences are measured for flashcupy only"),
    ],
)
def test_candidates_say_why_they_are_missing(monkeypatch, prepare, changes, why):
    monkeypatch.delenv("FLASHCUPY_PEERS", raising=False)
    with pytest.raises(UnavailableError) as caught:
        prepare(replace(TINY, **changes), None, HostGpu())
    assert reason(caught.value) == why


def test_a_peer_whose_file_was_not_brought_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHCUPY_PEERS", str(tmp_path))
    with pytest.raises(UnavailableError, match="the folder FLASHCUPY_PEERS has no fa4"):
        brought.prepare_fa4(replace(TINY, dtype="float16"), None, HostGpu())


@pytest.mark.slow
def test_the_sanitized_calls_are_right(capsys):
    assert sanitize_case.run(HostGpu()) == 0
    assert "WRONG" not in capsys.readouterr().out


def test_sanitized_calls_run_at_once_where_they_only_compile(monkeypatch, capsys):
    few = [replace(TINY, causal=causal) for causal in (False, True)]
    monkeypatch.setattr(sanitize_case, "problems", lambda: iter(few))
    assert sanitize_case.run(HostGpu(), jobs=4) == 0
    assert capsys.readouterr().out.count("ok ") == 4


def test_a_sanitized_call_that_fails_does_not_keep_the_others_from_running(monkeypatch, capsys):
    def refuses(q, k, v, **arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(flashcupy, "attention", refuses)
    monkeypatch.setattr(sanitize_case, "problems", lambda: iter([TINY]))
    assert sanitize_case.run(HostGpu()) == 1
    failed, right = capsys.readouterr().out.splitlines()
    assert failed.startswith("FAILED forward float32 D=16 B=2 H=4 S=48: RuntimeError: no such kernel")
    assert right.startswith("ok ")


@pytest.mark.parametrize("name", ["FLASHCUPY_CHECK", "FLASHCUPY_FALLBACK"])
def test_sanitized_calls_leave_no_markers_and_name_the_kernel_that_fails(monkeypatch, name):
    expected_values = {"FLASHCUPY_CHECK": "off", "FLASHCUPY_FALLBACK": "error"}
    for variable in expected_values:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "given")
    sanitize_case.set_environment()
    assert {variable: os.environ[variable] for variable in expected_values} == {**expected_values, name: "given"}


def test_the_cases_of_the_check_are_launched_and_who_fails_is_named(monkeypatch, capsys):
    asked = []

    def compute(case, device):
        asked.append((case.name, device))
        if case.dtype == "float16":
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(Case, "compute", compute)
    cases = [Case("float32", 64, 64), PlainCase("combine", "float"), Case("float16", 64, 64, wanted=("q",))]
    assert compile_cases.compile_cases(cases, "the device", 2) == 1
    assert sorted(asked) == [("float16-d64-v64-bwd-q", "the device"), ("float32-d64-v64-fwd", "the device")]
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("float16-d64-v64-bwd-q: RuntimeError: no such kernel")
    assert last == "2 cases, 1 failed"


@DIRECTIONS
def test_all_of_a_captured_call_happens_on_the_stream_of_its_capture(monkeypatch, direction):
    """Autograd runs a backward where its forward ran, and remembers of a leaf where that was first used."""
    torch = oracle("torch")
    streams, log = ["default"], []

    @contextmanager
    def on(stream):
        streams.append(stream)
        yield
        streams.pop()

    @contextmanager
    def graph(graph, *, stream):
        log.append("capture")
        with on(stream):
            yield

    class Side:
        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    fakes = {
        "Stream": Side,
        "stream": on,
        "graph": graph,
        "current_stream": lambda: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: log.append("replay")),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    leaves = []

    def attention(q, k, v):
        log.append(streams[-1])
        leaves.append(q)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if out.requires_grad:
            out.register_hook(lambda grad: log.append(streams[-1]))
        return out

    problem = replace(TINY, direction=direction)
    prepared = torch_tools.prepare_call(problem, operands.make(problem, np), attention, capture=torch_tools.capture)
    prepared.call()
    before = len(log)
    assert set(log) == {"default"}
    prepared.capture(prepared.call)()
    assert log[-1] == "replay"
    assert log.count("capture") == 1
    side = log[before]
    assert isinstance(side, Side)
    assert set(log[before:]) == {side, "capture", "replay"}
    if direction != "forward":
        assert leaves[0] is not leaves[-1]


def test_a_wrong_sanitized_call_is_told(monkeypatch, capsys):
    monkeypatch.setattr(flashcupy, "attention", lambda q, k, v, **arguments: np.zeros_like(q))
    monkeypatch.setattr(sanitize_case, "problems", lambda: iter([TINY]))
    assert sanitize_case.run(HostGpu()) == 1
    assert capsys.readouterr().out.startswith("WRONG 1.0e+00  forward")
