"""The oracle on packed sequences against itself on single ones."""

from __future__ import annotations

import numpy as np
import pytest
from naive import assert_close
from rowwise import CU_K, CU_Q, INF, PACKED_CASES, DenseMask, packed_operands

from flashcupy.reference import attention, attention_bwd, attention_varlen, attention_varlen_bwd


def check(actual, expected):
    assert_close(actual, expected, None, num_keys=11)


def own_options(options, n, sq, sk):
    """Narrow options to sequence n, as a dense call with a batch of n + 1 takes them (for dropout's batch index)."""
    longest = options.get("max_seqlen_q", 7), options.get("max_seqlen_k", 11)
    own = {key: value for key, value in options.items() if not key.startswith("max_")}
    for key in own.keys() & {"mask", "bias"}:
        own[key] = np.broadcast_to(own[key], (4, 4, *longest))[n, :, :sq, :sk]
    for key in own.keys() & {"q_lengths", "kv_lengths"}:
        own[key] = own[key][n]
    if "alibi_slopes" in own:
        own["alibi_slopes"] = np.broadcast_to(own["alibi_slopes"], (4, 4))[n]
    if "block_mask" in own:
        own["block_mask"] = DenseMask(own["block_mask"].to_dense()[n : n + 1, :, :sq, :sk])
    return own


@pytest.mark.parametrize("name", PACKED_CASES)
def test_packed_sequences_equal_single_ones(name):
    options = PACKED_CASES[name]
    q, k, v, dout, dlse = packed_operands()
    out, lse = attention_varlen(q, k, v, CU_Q, CU_K, **options)
    grads = attention_varlen_bwd(dout, q, k, v, CU_Q, CU_K, **options, dlse=dlse)
    sinks = np.asarray(options.get("sinks", [-INF] * 4))
    expected_out, expected_lse = np.zeros(dout.shape), np.repeat(sinks[:, None], dlse.shape[1], axis=1)
    expected = [np.zeros(x.shape) for x in (q, k, v)]
    dbias = np.zeros((4, 4, options.get("max_seqlen_q", 7), options.get("max_seqlen_k", 11)))
    dsinks = np.zeros(4)
    for n in range(4):
        at_q, at_k = slice(*CU_Q[n : n + 2]), slice(*CU_K[n : n + 2])
        sq, sk = np.diff(CU_Q)[n], np.diff(CU_K)[n]
        own = own_options(options, n, sq, sk)
        only = np.arange(n + 1)[:, None, None] == n  # earlier entries of the batch get no gradient
        batch = [np.where(only[..., None], x, 0) for x in (q[:, at_q], k[:, at_k], v[:, at_k], dout[:, at_q])]
        own_out, own_lse = attention(*batch[:3], **own)
        expected_out[:, at_q], expected_lse[:, at_q] = own_out[n], own_lse[n]
        own_grads = attention_bwd(batch[3], *batch[:3], **own, dlse=np.where(only, dlse[:, at_q], 0))
        for x, part, at in zip(expected, own_grads[:3], (at_q, at_k, at_k), strict=True):
            x[:, at] = part[n]
        if own_grads.dbias is not None:
            dbias[n, :, :sq, :sk] = own_grads.dbias
        if own_grads.dsinks is not None:
            dsinks += own_grads.dsinks
    check(out, expected_out)
    check(lse, expected_lse)
    for one, other in zip(grads[:3], expected, strict=True):
        check(one, other)
    if "bias" in options:
        shape = options["bias"].shape
        lead = dbias.sum(axis=tuple(range(4 - len(shape))))
        check(grads.dbias, lead.sum(axis=tuple(np.flatnonzero(np.array(shape) == 1)), keepdims=True))
    else:
        assert grads.dbias is None
    if "sinks" in options:
        check(grads.dsinks, dsinks)
    else:
        assert grads.dsinks is None


def test_no_sequences():
    q, k, v, dout, _ = packed_operands()
    out, lse = attention_varlen(q, k, v, [0], [0])
    assert not out.any()
    assert (lse == -INF).all()
    assert not any(grad.any() for grad in attention_varlen_bwd(dout, q, k, v, [0], [0])[:3])
