"""torch's scaled_dot_product_attention, each backend by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError, require_dtype, require_plain
from bench.gpu.candidates.torch_tools import capture, prepare_call, to_torch
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import DETERMINISTIC

BACKENDS = {
    "torch cuDNN": "CUDNN_ATTENTION",
    "torch flash": "FLASH_ATTENTION",
    "torch efficient": "EFFICIENT_ATTENTION",
    "torch math": "MATH",
}
LARGEST_SCORES = 4 << 30


def candidates(*names: str) -> list[Candidate]:
    """Return the backends of these names, all of them by default."""
    return [Candidate(name, partial(prepare, BACKENDS[name])) for name in names or BACKENDS]


def deterministic() -> list[Candidate]:
    """Return torch's flash backward as it is where deterministic algorithms are asked for."""
    name = "torch flash"
    return [Candidate(name + DETERMINISTIC, partial(prepare_deterministic, BACKENDS[name]))]


def prepare_deterministic(backend: str, problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare SDPA's backward on one backend, its gradients the same in every run."""
    if problem.direction == "forward":
        raise UnavailableError("differs in the backward only")
    prepared = prepare(backend, problem, operands, gpu)
    return replace(prepared, around=partial(_deterministically, prepared.around))


@contextmanager
def _deterministically(around: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    import torch
    import torch.utils.deterministic as utils

    before, filling = torch.are_deterministic_algorithms_enabled(), utils.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    utils.fill_uninitialized_memory = False  # it is no part of the algorithm, and takes time
    try:
        with around():
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        utils.fill_uninitialized_memory = filling


def prepare(backend: str, problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare SDPA on one backend."""
    require_plain(problem, "bias", "mask", "dropout")
    if backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
        require_dtype(problem, "float16", "bfloat16")
    if backend == "MATH" and problem.score_bytes > LARGEST_SCORES:
        raise UnavailableError(f"its scores take more than {LARGEST_SCORES >> 30} GiB")
    import torch.nn.attention

    kind = getattr(torch.nn.attention.SDPBackend, backend)
    around = partial(torch.nn.attention.sdpa_kernel, kind)
    return prepare_call(problem, operands, sdpa(problem, operands), around=around, capture=capture)


def sdpa(problem: Problem, operands: Operands) -> Any:
    """Return the call with the problem's options, of q, k and v."""
    import torch

    mask = next((operands.arguments[name] for name in ("bias", "mask") if name in problem.options), None)
    return partial(
        torch.nn.functional.scaled_dot_product_attention,
        attn_mask=None if mask is None else to_torch(mask),
        is_causal=problem.causal,
        dropout_p=operands.arguments.get("dropout", 0.0),
        enable_gqa=problem.heads != problem.kv_heads,
    )
