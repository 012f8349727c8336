"""Faults in what rows bring to the tensor-core backward: lse and delta, and the factor of rows whose lse is large."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

_LARGE, _LARGE_LSE = "mma backward of large scores", "mma backward of large scores, from lse"

# fmt: off
MMA_TERMS: tuple[Fault, ...] = (
    *faults_in(
        "tile/mma_terms.cuh",
        ("weights of scores without their factor", "exp2_approximate(multiply_add(product, factor, -lse))",
         "exp2_approximate(product - lse)", "mma backward", "wrong nan"),
        ("P is not normalised", "power_of_two(multiply_add(product, factor, -reference)) * inverse_sum",
         "power_of_two(multiply_add(product, factor, -reference))", "mma backward of float32"),
        ("terms of rows beyond the last", "own[r] = row < length ?", "own[r] = row < length + 64 ?",
         "mma backward of sinks, from lse", "bounds"),
        ("terms of a segment's first row", "->rows[row % kSegment]", "->rows[0]",
         "mma backward, deterministic", "wrong nan"),
        ("terms of the lane's first row", "return terms.own[r];", "return terms.own[0];",
         "mma backward, deterministic", "wrong nan"),
        ("terms of the even columns", "const { return two[i]; }", "const { return two[0]; }", "mma backward"),
        ("terms of the lane's first columns", "walked[c / 4].rows[first_row(c)]", "walked[c / 4].rows[first_row(0)]",
         "mma backward"),
        ("terms of the tile's first rows", "walked[c / 4].rows[first_row(c)]", "walked[0].rows[first_row(c)]",
         "mma backward"),
        ("terms of the tile's first segment", "tile.at(piece / kEach * kSegment)", "tile.at(0)", "mma backward"),
        ("the first terms of a segment for all", "from.at(row) + piece % kEach * kPiece", "from.at(row)",
         "mma backward"),
        ("terms of segments that there are not", "row < end ? kPiece : 0", "kPiece", "mma backward of lists",
         "bounds uninitialised"),
        # ---- rows whose lse is large ----
        ("P and dS of other rows are cleared", "return factor == 0 ? 1 : factor;", "return factor;", _LARGE),
        ("a factor of the segment's first row", "->large.of_row[row % kSegment]", "->large.of_row[0]", _LARGE),
        ("a factor of the lane's first row", "or_one(of_row[r])", "or_one(of_row[0])", _LARGE),
        ("the lane's first row alone is looked at", "fabsf(terms.own[r].lse)", "fabsf(terms.own[0].lse)",
         _LARGE),
        ("factors of rows beyond the last", "if (row < q.length)", "if (row < q.length + 64)",
         "mma backward of sinks, from lse", "bounds"),
        ("factors of the even columns", "or_one(two[i])", "or_one(two[0])", _LARGE),
        ("factors of the lane's first columns", "walked[c / 4].large.of_row[first_row(c)]",
         "walked[c / 4].large.of_row[first_row(0)]", _LARGE),
        ("factors of the tile's first segment", "walked[c / 4].large.of_row", "walked[0].large.of_row", _LARGE),
        ("the tile's first segment alone is looked at", "walked[lane / kLanesEach]", "walked[0]", _LARGE),
        ("the segments' first rows alone are looked at", "of_row[lane % kLanesEach * kEach]", "of_row[0]", _LARGE),
        ("each lane looks for itself", "any |= own.of_row[n] != 0;\n        return warp_any(any);",
         "any |= own.of_row[n] != 0;\n        return any;", _LARGE),
        ("P lacks the factor", "                weights.at[r][c + i] *= columns.factor(r, i);\n", "", _LARGE),
        ("dS lacks the factor", "                gradients.at[r][c + i] *= columns.factor(r, i);\n", "", _LARGE),
    ),
    *faults_in(
        "bwd_sm80.cu",
        ("the sink's weight without the factor", " * factors.factor(r, 0)", "", _LARGE_LSE),
    ),
    *faults_in(
        "bwd_rows_sm80.cu",
        ("lse is rounded whatever its size", "fabsf(lse) > kLarge", "fabsf(lse) > 1e30f", _LARGE),
        ("numbers that the forward did not compute", "if (is_far(params, sums.reference))", "if (false)",
         "mma backward of far scores", "bits"),
        ("lse is rounded far below zero", "fabsf(lse) > kLarge", "lse > kLarge", _LARGE),
    ),
)
# fmt: on
