"""Which tests run emulated in `make test`. The emulator takes up to a second for what NumPy does in a millisecond.

All others that take the `backend` fixture are slow where it is the emulator: `make test-all` runs them.
"""

from __future__ import annotations

import re

import pytest

# A test as pytest names it, and what its parameters are, a regular expression; without brackets all of them.
_GENERIC = r"""
test_attention.py::test_plain[.*-float32]
test_attention.py::test_each_option[(mask|dropout)-float32]
test_attention.py::test_everything_at_once
test_attention.py::test_scores_that_keep_growing
test_shapes.py::test_any_strides_give_the_same_bits[(float32-.*|.*-unaligned)]
test_shapes.py::(?!test_any_strides|test_matrices_have|test_slopes_broadcast).*
test_bad_input.py::.*
test_block_scores.py::test_mass_in_each_dtype[(float64-16x16|float16-32x128)]
test_block_scores.py::test_mass_with_options[mask.*]
test_block_scores.py::test_pooled_in_each_dtype[float32-.*]
test_block_scores.py::test_what_is_hidden_never_leaks[(lengths|mask)]
test_block_scores.py::(?!test_mass|test_pooled|test_what).*
test_merge.py::.*
test_hidden.py::test_a_key_hidden_from_every_query_never_leaks[.*-nan-small-None]
test_hidden.py::test_a_key_hidden_from_every_query_never_leaks[mask-inf-small-None]
test_hidden.py::test_a_query_that_sees_no_key_never_leaks[nan-None]
test_hidden.py::(?!test_a_key_hidden_from_every|test_a_query_that_sees_no).*
test_lists.py::test_empty_blocks_are_not_read
test_device_masks.py::test_from_topk[(ragged-.*|words-float32|words-float64)]
test_device_masks.py::(?!test_from_topk).*
test_device_masks_attention.py::(?!test_same_bits|test_rows_that_a_capacity).*
test_varlen.py::test_plain[.*float32]
test_varlen.py::test_each_option[(blocks|kv_lengths)]
test_varlen.py::test_each_pair_of_options[(causal\+window|q_lengths\+kv_lengths)]
test_varlen.py::(?!test_plain|test_each_option|test_each_pair).*
"""


# Where tensor cores serve the forward.
_SM80 = r"""
test_attention.py::test_plain[(45x77|1x50)-float16]
test_attention.py::test_each_option[bias-float16]
test_block_scores.py::test_mass_in_each_dtype[float16-16x16]
test_block_scores.py::test_mass_with_options[top_left.*]
test_fwd_sm80.py::test_blocks_of_a_list[(16-256|32-136)-float16]
test_fwd_sm80.py::test_head_dims[.*-float16]
test_fwd_sm80.py::test_packed_sequences_have_the_bits_of_a_padded_batch[(alibi|dropout)-float16]
test_fwd_sm80.py::test_shapes_of_the_band[.*-float16]
test_fwd_sm80.py::(?!test_(blocks_of|head_dims|packed|shapes_of)).*
test_fwd_sm80_far.py::.*
test_bwd_sm80.py::test_(each_operand_has_a_path|what_lies_beside).*
test_bwd_sm80_edges.py::test_keys_that_there.*
test_bwd_sm80_edges.py::test_gradients_from_the_output_and_lse_alone[True-float16]
test_bwd_sm80.py::test_any_strides_give_the_same_bits[float16-.*]
test_bwd_sm80.py::test_head_dims[8-72-float16]
test_bwd_sm80_edges.py::test_query_heads_share_keys[heads1-.*]
test_bwd_sm80_edges.py::test_nothing_there[.*-float16-.*]
test_bwd_sm80_edges.py::test_shapes_of_the_band[90-33-features2-float16]
test_bwd_sm80_edges.py::test_packed_sequences_have_the_gradients_of_a_padded_batch[causal-float16-.*]
test_bwd_sm80_edges.py::test_used_lengths_from_none_to_all[float16]
test_block_sparse.py::test_random_masks[128-1-.*]
test_device_masks_attention.py::test_same_bits.*[2-1]
test_hidden.py::(?!test_a_(key_hidden_from_every|query_that_sees_no)).*
test_merge.py::test_parts_of_the_keys
test_together.py::(?!test_heads_have_the_bits|test_any_number).*
test_varlen.py::test_plain[.*-float16]
"""

# What has no part in them: float64, calls that are refused; bfloat16 where float16 goes the same way in numbers; and of
# the pairs of options, each of which one family runs, those that begin with what is no hook. And for time what another
# dtype, size or option shows as well.
_SM80_LEAVES = r"""
test_attention.py::test_each_pair_of_options[(causal|top_left|window|left_window|scale)\+.*]
test_(attention|hidden|lists|merge|reference_varlen|shapes|varlen).py::.*[.*float64.*]
test_attention.py::test_everything_at_once
test_attention.py::test_each_option[.*-bfloat16]
test_attention.py::test_full_tiles[features[123]]
test_attention.py::test_long_rows[(bfloat16|tf32)]
test_bwd_sm80.py::test_blocks_of_a_list[.*-tf32]
test_bwd_sm80.py::test_deterministic_gradients_are_right[.*-bfloat16]
test_bwd_sm80.py::test_the_same_bits_in_every_order_of_lanes_and_copies[(True-24|False-40)-.*]
test_bad_input.py::.*
test_block_scores.py::(?!test_mass_(in_each|with_options)).*
test_block_scores.py::test_mass_in_each_dtype[float64.*]
test_hidden.py::test_a_row_without_keys_has_no_gradient_even_through_its_sink
test_lists.py::.*
test_shapes.py::(?!test_any_strides|test_sixteen_bit).*
test_varlen.py::(?!test_plain).*
"""


# Hundreds of kernels, that would be other combinations of what each option has shown in each dtype.
_NOT_EMULATED = r"""
test_attention.py::test_each_pair_in_each_dtype_and_shape
test_block_sparse.py::test_every_combination
"""

# Half a minute each: float32 has most to lose in sums over many keys. And what a test of more dtypes shows as well.
_GENERIC_LEAVES = r"""
test_attention.py::test_each_pair_of_options[(?!causal|top_left|window|left_window|scale).*]
test_lists.py::test_block_sizes
test_attention.py::test_long_rows[(?!float32).*]
test_attention.py::test_each_option[.*-b?float16]
test_attention.py::test_full_tiles[features[13]]
"""


def left_to_others(items: list[pytest.Item]) -> list[pytest.Item]:
    """Tests of a backend that another one runs in the same way, or that it has no time for."""
    return [item for item in items if _named(_LEFT, item)]


def mark_slow(items: list[pytest.Item]) -> None:
    for item in items:
        if _named(_QUICK, item) is False:
            item.add_marker(pytest.mark.slow)


def _named(patterns: dict[str, re.Pattern[str]], item: pytest.Item) -> bool | None:
    """Whether the pattern of its backend names the test; None where there is none."""
    pattern = patterns.get(_backend_of(item) or "")
    return None if pattern is None else pattern.fullmatch(_without_backend(item.nodeid)) is not None


def _backend_of(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else getattr(call.params.get("backend"), "name", None)


def _without_backend(nodeid: str) -> str:
    """Name a test as if it took no backend."""
    name, _, parameters = nodeid.rpartition("/")[2].partition("[")
    kept = "-".join(part for part in parameters.rstrip("]").split("-") if part not in _QUICK)
    return f"{name}[{kept}]" if kept else name


def _compiled(lines: str) -> re.Pattern[str]:
    def pattern(line: str) -> str:
        name, bracket, parameters = line.partition("[")
        return name + (rf"\[{parameters[:-1]}\]" if bracket else r"(\[.*\])?")

    return re.compile("|".join(f"({pattern(line)})" for line in lines.split()))


_QUICK = {"emu": _compiled(_GENERIC), "emu_sm80": _compiled(_SM80)}
_LEFT = {"emu": _compiled(_NOT_EMULATED + _GENERIC_LEAVES), "emu_sm80": _compiled(_NOT_EMULATED + _SM80_LEAVES)}
