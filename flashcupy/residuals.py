"""What a forward leaves for its backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashcupy import backend, build, outputs
from flashcupy.arrays import Array
from flashcupy.options import Options
from flashcupy.spec import AttentionProblem, AttentionSpec


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttentionResiduals:
    """State that `flashcupy.attention_bwd` needs: references to the inputs, the output and lse. May be used again.

    Changing any of the arrays between forward and backward is the caller's mistake.

    Attributes
    ----------
    q, k, v, out, lse : arrays, as handed to or returned by the forward
    spec : AttentionSpec
        The validated description of the call.
    seed : (int, int), uint64 device array of 2, or None
        (seed, offset) of the dropout mask, also where the call drew it.
    """

    q: Any
    k: Any
    v: Any
    out: Any
    lse: Any
    problem: AttentionProblem
    out_array: Array
    lse_array: Array
    kept: Any

    @property
    def spec(self) -> AttentionSpec:
        return self.problem.spec

    @property
    def seed(self) -> tuple[int, int] | Array | None:
        return self.problem.seed

    def __repr__(self) -> str:
        spec = self.spec
        return f"AttentionResiduals(out {spec.out_shape(spec.v_dim)} {spec.dtype}, lse {spec.lse_shape})"

    @classmethod
    def from_arrays(
        cls,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        lse: Any,
        *,
        causal: bool | str = False,
        scale: float | None = None,
        window: tuple[int | None, int | None] | None = None,
        mask: Any = None,
        bias: Any = None,
        alibi_slopes: Any = None,
        softcap: float | None = None,
        sinks: Any = None,
        block_mask: Any = None,
        dropout: float = 0.0,
        seed: Any = None,
        q_lengths: Any = None,
        kv_lengths: Any = None,
        precision: str = "highest",
        cu_seqlens_q: Any = None,
        cu_seqlens_k: Any = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
    ) -> AttentionResiduals:
        """Make residuals from arrays kept elsewhere, for hosts that hold state themselves.

        Parameters
        ----------
        q, k, v, out, lse : arrays
            Inputs and results of a forward call; `out` in q's dtype (or float32 for 16-bit inputs), `lse` float32
            (float64 for float64 inputs).
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
            As in `flashcupy.attention_varlen`; give both cu_seqlens exactly where the forward was a packed one.
        causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, block_mask, dropout, seed, q_lengths, \
kv_lengths, precision
            What the forward was called with. With dropout, `seed` is required: another one would drop other entries.

        Raises
        ------
        TypeError, ValueError
            As in `flashcupy.attention`; also for results of the wrong shape or dtype, or a missing seed.

        Examples
        --------
        >>> import numpy as np
        >>> import flashcupy as fc
        >>> q = k = v = np.random.default_rng(0).standard_normal((2, 5, 8))
        >>> out, lse = fc.attention(q, k, v, causal=True, return_lse=True)
        >>> residuals = fc.AttentionResiduals.from_arrays(q, k, v, out, lse, causal=True)
        >>> fc.attention_bwd(np.ones_like(out), residuals).dq.shape
        (2, 5, 8)
        """
        opts = Options.of(locals())
        if opts.dropout and opts.seed is None:
            raise ValueError("seed is None with dropout > 0, expected the (seed, offset) that the forward used")
        cu, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        problem = build.problem(q, k, v, cu, longest, opts)
        out_array, lse_array = outputs.results_given(problem, out, lse)
        kept = backend.serving(problem.spec.device).kept_from_lse(lse_array)
        return cls(q, k, v, out, lse, problem, out_array, lse_array, kept)
