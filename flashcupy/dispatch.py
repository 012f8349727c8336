"""From a validated problem to results: allocate or check outputs, let the backend compute, hand results back.

A backend is two functions, forward and backward on a problem. There is one so far, NumPy's; it is chosen by where the
arrays live.
"""

from __future__ import annotations

from typing import Any

from flashcupy import arrays, cpu, outputs
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads
from flashcupy.spec import AttentionProblem


def run_forward(
    problem: AttentionProblem, inputs: tuple[Any, Any, Any], out: Any, lse_out: Any = None
) -> AttentionResiduals:
    """Compute out and lse; `inputs` are the caller's own q, k, v, for the residuals."""
    out_array = outputs.out_array(problem, out)
    lse_array = outputs.lse_array(problem, lse_out)
    if out is not None and lse_out is not None:
        arrays.require_no_overlap(out_array, "out", [("lse_out", lse_array)])
    kept = cpu.forward(problem, out_array, lse_array)
    return AttentionResiduals(
        *inputs,
        out=arrays.write_back(out_array, problem.library) if out is None else out,
        lse=arrays.write_back(lse_array, problem.library) if lse_out is None else lse_out,
        problem=problem,
        out_array=out_array,
        kept=kept,
    )


def run_backward(
    residuals: AttentionResiduals, dout: Any, dlse: Any, wrt: Any, deterministic: bool, out: Any
) -> AttentionGrads:
    if not isinstance(residuals, AttentionResiduals):
        raise TypeError(f"residuals is a {type(residuals).__name__}, expected flashcupy.AttentionResiduals")
    problem = residuals.problem
    wanted = outputs.wanted_grads(problem, wrt)
    dout_array, dlse_array = outputs.upstream_given(problem, dout, dlse)
    read_only = [
        ("residuals.out", residuals.out_array),
        ("residuals.lse", residuals.kept.lse),
        ("dout", dout_array),
        ("dlse", dlse_array),
    ]
    grads = outputs.grad_arrays(problem, wanted, out, read_only)
    upstream = cpu.Upstream(residuals.out_array, residuals.kept, dout_array, dlse_array)
    cpu.backward(problem, upstream, grads, deterministic=bool(deterministic))
    return outputs.grads_out(problem, grads, out)
