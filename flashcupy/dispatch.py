"""From a validated problem to results: allocate or check outputs, let the backend compute, hand results back."""

from __future__ import annotations

from typing import Any

from flashcupy import arrays, backend, outputs
from flashcupy.overlap import require_no_overlap
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads, Explanation
from flashcupy.spec import AttentionProblem


def compute(problem: AttentionProblem, out: Any, lse_out: Any = None) -> tuple[Any, Any]:
    """Return out and lse."""
    out_array, lse_array = _results(problem, out, lse_out)
    backend.serving(problem.spec.device).forward(problem, out_array, lse_array, keep=False)
    return _handed(out_array, problem, out), _handed(lse_array, problem, lse_out)


def run_forward(problem: AttentionProblem, inputs: tuple[Any, Any, Any], out: Any, lse_out: Any) -> AttentionResiduals:
    """Compute out and lse, and keep what a backward needs; `inputs` are the caller's own q, k, v."""
    out_array, lse_array = _results(problem, out, lse_out)
    kept = backend.serving(problem.spec.device).forward(problem, out_array, lse_array, keep=True)
    return AttentionResiduals(
        *inputs,
        out=_handed(out_array, problem, out),
        lse=_handed(lse_array, problem, lse_out),
        problem=problem,
        out_array=out_array,
        lse_array=lse_array,
        kept=kept,
    )


def run_backward(
    residuals: AttentionResiduals, dout: Any, dlse: Any, wrt: Any, deterministic: bool, out: Any
) -> AttentionGrads:
    if not isinstance(residuals, AttentionResiduals):
        raise TypeError(f"residuals is a {type(residuals).__name__}, expected flashcupy.AttentionResiduals")
    dout_array, dlse_array, grads = _checked_backward(residuals, dout, dlse, wrt, out)
    problem = residuals.problem
    backend.serving(problem.spec.device).backward(
        problem, residuals.out_array, residuals.kept, dout_array, dlse_array, grads, deterministic=bool(deterministic)
    )
    return outputs.grads_out(problem, grads, out)


def forward_workspace(problem: AttentionProblem, out: Any, lse_out: Any) -> int:
    """Bytes of device memory that `compute` needs into these very arrays, besides them."""
    return backend.serving(problem.spec.device).forward_workspace(problem, *_results(problem, out, lse_out))


def backward_workspace(
    residuals: AttentionResiduals, dout: Any, dlse: Any, wrt: Any, deterministic: bool, out: Any
) -> int:
    """Bytes of device memory that `run_backward` needs into these very arrays, besides them."""
    dout_array, dlse_array, grads = _checked_backward(residuals, dout, dlse, wrt, out)
    return backend.serving(residuals.spec.device).backward_workspace(
        residuals.problem, residuals.out_array, residuals.kept, dout_array, dlse_array, grads, bool(deterministic)
    )


def _checked_backward(
    residuals: AttentionResiduals, dout: Any, dlse: Any, wrt: Any, out: Any
) -> tuple[arrays.Array, arrays.Array | None, dict[str, arrays.Array]]:
    problem = residuals.problem
    wanted = outputs.wanted_grads(problem, wrt)
    dout_array, dlse_array = outputs.upstream_given(problem, dout, dlse)
    read_only = [
        ("residuals.out", residuals.out_array),
        ("residuals.lse", residuals.lse_array),
        ("dout", dout_array),
        ("dlse", dlse_array),
    ]
    return dout_array, dlse_array, outputs.grad_arrays(problem, wanted, out, read_only)


def pooled_scores(problem: AttentionProblem, block_size: tuple[int, int], out: Any) -> Any:
    target = outputs.block_scores_array(problem, block_size, out)
    backend.serving(problem.spec.device).pooled_scores(problem, block_size, target)
    return _handed(target, problem, out)


def block_mass(problem: AttentionProblem, block_size: tuple[int, int], out: Any) -> Any:
    target = outputs.block_scores_array(problem, block_size, out)
    backend.serving(problem.spec.device).block_mass(problem, block_size, target)
    return _handed(target, problem, out)


def explain(problem: AttentionProblem) -> Explanation:
    return backend.serving(problem.spec.device).explain(problem)


def warmup(problem: AttentionProblem, backward: bool) -> None:
    backend.serving(problem.spec.device).warmup(problem, backward=bool(backward))


def _results(problem: AttentionProblem, out: Any, lse_out: Any) -> tuple[arrays.Array, arrays.Array]:
    out_array, lse_array = outputs.out_array(problem, out), outputs.lse_array(problem, lse_out)
    if out is not None and lse_out is not None:
        require_no_overlap(out_array, "out", [("lse_out", lse_array)])
    return out_array, lse_array


def _handed(array: arrays.Array, problem: AttentionProblem, given: Any) -> Any:
    """The caller's own object where he gave one."""
    # Handed over all the same: that is when torch's own stream learns to wait for ours.
    handed = arrays.write_back(array, problem.library)
    return handed if given is None else given
