"""Which tests run emulated in `make test`. The emulator takes up to a second for what NumPy does in a millisecond.

All others that take the `backend` fixture are slow where it is the emulator: `make test-all` runs them.
"""

from __future__ import annotations

import re

import pytest

# A test as pytest names it, and what its parameters are, a regular expression; without brackets all of them.
_GENERIC = r"""
test_attention.py::test_plain[(?!.*tf32).*]
test_attention.py::test_each_option[.*-(float32|bfloat16)]
test_attention.py::test_each_pair_of_options[(causal\+(window|blocks|kv_lengths)|mask\+bias|bias\+dropout)-.*]
test_attention.py::test_each_pair_of_options[(softcap\+alibi|sinks\+blocks|blocks\+dropout|q_lengths\+kv_lengths)-.*]
test_attention.py::test_everything_at_once
test_attention.py::test_scores_that_keep_growing
test_attention.py::test_head_dims[(1|31|128|256)]
test_attention.py::test_full_tiles[features[01]]
test_shapes.py::.*
test_bad_input.py::.*
test_merge.py::.*
test_hidden.py::test_a_key_hidden_from_every_query_never_leaks[.*-(nan|inf)-small-None]
test_hidden.py::test_a_key_hidden_from_every_query_never_leaks[(mask|block_mask)-nan-(small|real)-5.0]
test_hidden.py::(?!test_a_key_hidden_from_every).*
test_lists.py::test_block_sizes[(16|128|block_size6)]
test_lists.py::test_empty_blocks_are_not_read
test_varlen.py::test_plain
test_varlen.py::test_each_option
test_varlen.py::test_each_pair_of_options[(causal\+window|mask\+bias|alibi\+blocks|q_lengths\+kv_lengths)]
test_varlen.py::(?!test_plain|test_each_option|test_each_pair).*
"""


# Where tensor cores serve the forward.
_SM80 = r"""
test_attention.py::test_plain[(.*-float16|(45x77|64x64)-(float32|tf32)|45x77-bfloat16)]
test_attention.py::test_each_option[(softcap|mask|bias|alibi|blocks|dropout)-float16]
test_attention.py::test_each_option[(causal|dropout)-float32]
test_fwd_sm80.py::.*
test_bwd_sm80.py::test_(blocks_need_not|each_operand_has_a_path|what_lies_beside).*
test_bwd_sm80_edges.py::test_(keys_that_there|gradients_from_the_output).*
test_bwd_sm80.py::test_deterministic_gradients_are_right[(features1-float16|features2-float32)]
test_bwd_sm80.py::test_any_strides_give_the_same_bits[float16-.*]
test_bwd_sm80.py::test_head_dims[(8-72|64-200|136-16|31-128)-float16]
test_bwd_sm80_edges.py::test_query_heads_share_keys[heads1-.*]
test_bwd_sm80_edges.py::test_nothing_there[.*-float16-.*]
test_bwd_sm80_edges.py::test_shapes_of_the_band[(90-33|1-70|70-1)-.*-float16]
test_bwd_sm80_edges.py::test_packed_sequences_have_the_gradients_of_a_padded_batch[(causal|dropout)-float16-.*]
test_bwd_sm80_edges.py::test_used_lengths_from_none_to_all[float16]
test_hidden.py::test_a_key_hidden_from_every_query_never_leaks[(mask|block_mask|bias)-nan-small-None]
test_hidden.py::(?!test_a_key_hidden_from_every).*
test_merge.py::test_parts_of_the_keys
test_varlen.py::test_plain
"""

# What has no part in them: float64, calls that are refused; and bfloat16 where float16 goes the same way in numbers.
_SM80_LEAVES = r"""
test_attention.py::test_each_pair_in_each_dtype_and_shape[.*bfloat16.*]
test_(attention|hidden|lists|merge|reference_varlen|shapes|varlen).py::.*[.*float64.*]
test_attention.py::test_everything_at_once
test_bad_input.py::.*
test_hidden.py::test_a_row_without_keys_has_no_gradient_even_through_its_sink
test_lists.py::.*
test_shapes.py::(?!test_any_strides|test_sixteen_bit).*
test_varlen.py::(?!test_plain).*
"""


def left_to_others(items: list[pytest.Item]) -> list[pytest.Item]:
    """Tests of a backend that another one runs in the same way."""
    return [
        item for item in items if _backend_of(item) == "emu_sm80" and _LEFT.fullmatch(_without_backend(item.nodeid))
    ]


def mark_slow(items: list[pytest.Item]) -> None:
    for item in items:
        backend = _backend_of(item)
        if backend in _PATTERNS and not _PATTERNS[backend].fullmatch(_without_backend(item.nodeid)):
            item.add_marker(pytest.mark.slow)


def _backend_of(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else getattr(call.params.get("backend"), "name", None)


def _without_backend(nodeid: str) -> str:
    """Name a test as if it took no backend."""
    name, _, parameters = nodeid.rpartition("/")[2].partition("[")
    kept = "-".join(part for part in parameters.rstrip("]").split("-") if part not in _PATTERNS)
    return f"{name}[{kept}]" if kept else name


def _compiled(lines: str) -> re.Pattern[str]:
    def pattern(line: str) -> str:
        name, bracket, parameters = line.partition("[")
        return name + (rf"\[{parameters[:-1]}\]" if bracket else r"(\[.*\])?")

    return re.compile("|".join(f"({pattern(line)})" for line in lines.split()))


_PATTERNS = {"emu": _compiled(_GENERIC), "emu_sm80": _compiled(_SM80)}
_LEFT = _compiled(_SM80_LEAVES)
