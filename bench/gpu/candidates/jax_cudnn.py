"""JAX's jax.nn.dot_product_attention on cuDNN.

JAX works on streams of its own, which events of another library's stream do not see: the host's clock times several
calls enqueued one after another.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from bench.gpu.candidates.base import Candidate, Prepared, require_dtype, require_plain
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import Call

NAMES = ("dq", "dk", "dv")


def candidates() -> list[Candidate]:
    return [Candidate("JAX cuDNN", partial(prepare, "cudnn"))]


def prepare(implementation: str, problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare the jitted call on arrays in JAX's layout (batch, length, heads, head_dim)."""
    require_plain(problem, "window", "bias", "mask")
    require_dtype(problem, "float16", "bfloat16")
    jax = _jax()
    attention = jax.jit(partial(jax.nn.dot_product_attention, **_options(problem, operands, implementation)))
    gpu.synchronize()  # what made the operands runs on a stream that JAX does not wait for
    *inputs, dout = [
        jax.block_until_ready(_to_jax(x).swapaxes(1, 2).copy())
        for x in (operands.q, operands.k, operands.v, operands.dout)
    ]
    if problem.direction == "forward":
        return Prepared(
            lambda: attention(*inputs),
            lambda out: {"out": _from_jax(operands.xp, out[-1, :, -1])},
            clock="host",
            wait=jax.block_until_ready,
        )
    return Prepared(
        _gradients(problem, attention, inputs, dout),
        lambda grads: {name: _from_jax(operands.xp, x[-1, :, -1]) for name, x in zip(NAMES, grads, strict=True)},
        clock="host",
        wait=jax.block_until_ready,
    )


def _gradients(problem: Problem, attention: Any, inputs: list[Any], dout: Any) -> Call:
    """Return the backward alone, or the forward and it as one compiled function."""
    jax = _jax()
    if problem.direction == "forward + backward":
        both = jax.jit(lambda inputs, dout: jax.vjp(attention, *inputs)[1](dout))
        return lambda: both(inputs, dout)
    _, pullback = jax.vjp(attention, *inputs)
    backward = jax.jit(lambda pullback, dout: pullback(dout))
    return lambda: backward(pullback, dout)


def _options(problem: Problem, operands: Operands, implementation: str) -> dict[str, Any]:
    options: dict[str, Any] = {"is_causal": problem.causal, "implementation": implementation}
    if "window" in problem.options:
        options["local_window_size"] = operands.arguments["window"]
    for name in ("bias", "mask"):
        if name in problem.options:
            options[name] = _to_jax(operands.arguments[name])[None, None]
    return options


def _jax() -> Any:
    # JAX would otherwise take three quarters of the memory at its first call.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    return jax


def _to_jax(array: Any) -> Any:
    jax = _jax()
    if isinstance(array, np.ndarray):
        return jax.numpy.asarray(array)
    kind = str(array.dtype)
    if kind in ("bfloat16", "bool"):
        integers = jax.dlpack.from_dlpack(array.view("uint16" if kind == "bfloat16" else "uint8"))
        return integers.astype(bool) if kind == "bool" else jax.lax.bitcast_convert_type(integers, jax.numpy.bfloat16)
    return jax.dlpack.from_dlpack(array)


def _from_jax(xp: Any, array: Any) -> Any:
    jax = _jax()
    return xp.from_dlpack(jax.block_until_ready(array.astype(jax.numpy.float32)))
