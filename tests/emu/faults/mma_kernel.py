"""Faults in kernels_cu/fwd_sm80.cu: what orders copies and products, what a block computes and stores."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

# Each load of a stage, and each use, has a place in the kernel that orders it.
_WAIT_K = "copy_async_wait<0>();\n        round_keys<Tiles>(shared_.k[0]"
_WAIT_V = "copy_async_wait<0>();\n        round_values<Tiles>(shared_.v[0]"
_WAIT_BOTH = "copy_async_wait<0>();\n        round_keys<Tiles>(shared_.k[stage]"
_BEHIND_WAIT_K = _WAIT_K.removeprefix("copy_async_wait<0>();\n        ")
_BEHIND_WAIT_V = _WAIT_V.removeprefix("copy_async_wait<0>();\n        ")
_BEHIND_WAIT_BOTH = _WAIT_BOTH.removeprefix("copy_async_wait<0>();\n        ")
_COPY_V = "        copy_v(shared_.v[0], tile_);\n"
_SYNC_K = "        block_sync();  // keys are there, and nobody reads the values of the tile before\n"
_SYNC_V = (
    "        block_sync();  // values are there, nobody reads these keys, and the next tile's segments are there\n"
)
_SYNC_BOTH = (
    "        block_sync();  // this tile is there, and so are the next one's segments; nobody reads the one before\n"
)
_COPY_NEXT_K = "        if (another_) copy_k(shared_.k[0], following_);\n"
_COMMIT = "        copy_async_commit();\n"
_NEXT_TWO = """        if (another_) {
            copy_k(shared_.k[stage ^ 1], following_);
            copy_v(shared_.v[stage ^ 1], following_);
        }
"""

# fmt: off
MMA_KERNEL: tuple[Fault, ...] = (
    *faults_in(
        "fwd_sm80.cu",
        # ---- one stage ----
        ("keys are used before they arrive", _WAIT_K, _BEHIND_WAIT_K, "mma", "race"),
        ("the wait for keys leaves one group pending", _WAIT_K, _WAIT_K.replace("<0>", "<1>"), "mma", "race"),
        ("values are used before they arrive", _WAIT_V, _BEHIND_WAIT_V, "mma", "race"),
        ("the wait for values leaves one group pending", _WAIT_V, _WAIT_V.replace("<0>", "<1>"), "mma", "race"),
        ("the first copies are in no group", _COMMIT + "        prepare", "        prepare", "mma", "race"),
        ("copies of values are in no group", _COPY_V + _COMMIT, _COPY_V, "mma", "race"),
        ("copies of the next keys are in no group", _COPY_NEXT_K + _COMMIT, _COPY_NEXT_K, "mma", "race"),
        ("no barrier between a thread's keys and their use", _SYNC_K, "", "mma", "race"),
        ("keys ordered within warps only", _SYNC_K, "        warp_sync();\n", "mma", "race"),
        ("no barrier between a thread's values and their use", _SYNC_V, "", "mma", "race"),
        ("values ordered within warps only", _SYNC_V, "        warp_sync();\n", "mma", "race"),
        ("values are refilled while others multiply", _SYNC_K + _COPY_V, _COPY_V + _SYNC_K, "mma", "race"),
        ("keys are refilled while others multiply", _SYNC_V + _COPY_NEXT_K, _COPY_NEXT_K + _SYNC_V, "mma", "race"),
        ("the tile itself is copied again", _COPY_NEXT_K, _COPY_NEXT_K.replace("following_", "tile_"), "mma"),
        ("values of the next tile", _COPY_V, _COPY_V.replace("tile_", "following_"), "mma", "wrong uninitialised"),
        ("keys are rounded before they arrive", _WAIT_K,
         "round_keys<Tiles>(shared_.k[0], params_.k, shared_.k_base, params_.head_dim);\n        "
         "copy_async_wait<0>();\n        if (false) round_keys<Tiles>(shared_.k[0]", "mma tf32", "race"),
        # ---- two stages ----
        ("a stage is used before it arrives", _WAIT_BOTH, _BEHIND_WAIT_BOTH, "mma two stages", "race"),
        ("the wait for a stage leaves one group pending", _WAIT_BOTH, _WAIT_BOTH.replace("<0>", "<1>"),
         "mma two stages", "race"),
        ("no barrier between stages", _SYNC_BOTH, "", "mma two stages", "race"),
        ("stages ordered within warps only", _SYNC_BOTH, "        warp_sync();\n", "mma two stages", "race"),
        ("a stage is refilled while others multiply", _SYNC_BOTH + _NEXT_TWO, _NEXT_TWO + _SYNC_BOTH, "mma two stages",
         "race"),
        ("the next keys replace those in use", "copy_k(shared_.k[stage ^ 1]", "copy_k(shared_.k[stage]",
         "mma two stages", "race"),
        ("the next values replace those in use", "copy_v(shared_.v[stage ^ 1]", "copy_v(shared_.v[stage]",
         "mma two stages", "race"),
        ("copies of a stage are in no group", _NEXT_TWO + _COMMIT, _NEXT_TWO, "mma two stages", "race"),
        ("stages do not take turns", "stage ^= Tiles::kStages - 1", "stage ^= 0", "mma two stages", "race wrong"),
        ("keys of the other stage", "multiply_keys(scores, shared_.k[stage])",
         "multiply_keys(scores, shared_.k[stage ^ 1])", "mma two stages", "race uninitialised"),
        ("values of the other stage", "visit(scores, bits, shared_.v[stage])",
         "visit(scores, bits, shared_.v[stage ^ 1])", "mma two stages", "race uninitialised"),
        ("the tile after the next is forgotten", "another_ = further_, following_ = after_;", "another_ = further_;",
         "mma two stages"),
        # ---- by the numbers alone ----
        ("keys are used before they arrive, unseen", _WAIT_K, _BEHIND_WAIT_K, "mma without the detector", "wrong nan"),
        ("values are used before they arrive, unseen", _WAIT_V, _BEHIND_WAIT_V, "mma without the detector",
         "wrong nan"),
        ("a stage is used before it arrives, unseen", _WAIT_BOTH, _BEHIND_WAIT_BOTH,
         "mma two stages without the detector", "wrong nan"),
        ("the next keys replace those in use, unseen", "copy_k(shared_.k[stage ^ 1]", "copy_k(shared_.k[stage]",
         "mma two stages without the detector", "wrong nan"),
        ("the next values replace those in use, unseen", "copy_v(shared_.v[stage ^ 1]", "copy_v(shared_.v[stage]",
         "mma two stages without the detector", "wrong nan"),
        # ---- the tile ----
        ("no barrier between the work and its use",
         "        block_sync();  // the work and the schedule's bounds are there\n", "", "mma", "race uninitialised"),
        ("no barrier between the first segments and their use",
         "        block_sync();  // the tile's segments are there\n", "", "mma lists", "race uninitialised"),
        ("the key head of another group", "work.head / (params.q_heads / params.kv_heads)",
         "work.head % params.kv_heads", "mma"),
        ("values of the query's head", "rows(params.v, work, kv_head", "rows(params.v, work, work.head", "mma",
         "bounds wrong"),
        ("the first chunk of values for all", "first_column_(work.chunk * Tiles::kVDim)", "first_column_(0)",
         "mma chunks", "race wrong"),
        ("visibility of the next tile", "place = {first_row_, tile_};\n        TileBits",
         "place = {first_row_, following_};\n        TileBits", "mma mask of two stages", "wrong bounds uninitialised"),
        ("partial tiles as if they were full", "if (Hooks::kHides || schedule_.partial(tile_)) hide",
         "if (Hooks::kHides) hide", "mma causal"),
        ("a mask only in partial tiles", "if (Hooks::kHides || schedule_.partial(tile_)) hide",
         "if (schedule_.partial(tile_)) hide", "mma mask"),
        ("all of a partial tile is visible", "if (!Hooks::kHides && schedule_.partial(tile_)) visible",
         "if (false) visible", "mma causal"),
        ("nobody looks which values are seen", "if constexpr (kMayHideKeys) seen", "if constexpr (false) seen",
         "mma hidden by mask", "bits nan"),
        ("a mask hides no value", "kMayHideKeys = Hooks::kHides || Schedule::kPatterns",
         "kMayHideKeys = Schedule::kPatterns", "mma hidden by mask", "bits nan"),
        ("a list hides no value", "kMayHideKeys = Hooks::kHides || Schedule::kPatterns",
         "kMayHideKeys = Hooks::kHides", "mma hidden by lists", "bits nan"),
        ("the factor is not applied", "softmax_.update(scores, factor, out_)", "softmax_.update(scores, 1, out_)",
         "mma"),
        ("no dropout", "        keep_only(scores, bits.kept);\n", "", "mma dropout"),
        ("dropped weights are not in the sum",
         "        softmax_.update(scores, factor, out_);\n        keep_only(scores, bits.kept);\n",
         "        hide(scores, bits.kept);\n        softmax_.update(scores, factor, out_);\n", "mma dropout"),
        ("dropped weights are not made up for", "static_cast<float>(hooks_.survivors())", "1", "mma dropout"),
        ("sums of one lane", "        softmax_.gather();\n", "", "mma"),
        ("rows beyond the length have an lse", "value() != 0 && row < queries.length", "value() != 0", "mma lengths",
         "wrong nan"),
        ("lse of all rows of a tile", "if (row < queries.allotted) store_row", "store_row", "mma", "race bounds"),
        ("rows beyond the length have no lse", "if (row < queries.allotted) store_row",
         "if (row < queries.length) store_row", "mma lengths", "nan"),
        ("a sink in natural units", "sink * static_cast<float>(kLog2E)", "sink", "mma sinks"),
        ("rows that see nothing give NaN", "saw ? divided(own.low_value()", "true ? divided(own.low_value()",
         "mma mask", "nan"),
        ("quotients round twice", "if constexpr (!Tiles::kPrecise) return quotient;", "return quotient;",
         "mma equal values", "bits"),
        ("infinite quotients give NaN", "rest == rest ? multiply_add(rest, reciprocal, quotient) : quotient",
         "multiply_add(rest, reciprocal, quotient)", "mma infinite values", "nan"),
        ("every row divided by the first one's sum", "normalise(out_.at[r], saw, factor, softmax_.sum[r].value())",
         "normalise(out_.at[r], saw, factor, softmax_.sum[0].value())", "mma", "wrong nan"),
        ("results at the start of the first packed sequence", "head) + queries.start * params_.out.row",
         "head)", "mma packed", "race wrong"),
        ("every warp stores the first one's rows", "first_row_ + Tiles::first_warp_row(), queries",
         "first_row_, queries", "mma", "race"),
        ("warps share a stage", "shared_.q + Tiles::first_warp_row() * Tiles::kHeadPitch", "shared_.q", "mma", "race"),
        ("every lane of a row stores its lse", "Tiles::thread_lane() != 0 || work.chunk != 0", "work.chunk != 0", "mma",
         "race"),
        ("every chunk stores lse", "Tiles::thread_lane() != 0 || work.chunk != 0", "Tiles::thread_lane() != 0",
         "mma chunks", "race"),
        ("lse of the first packed sequence", "queries.start + row, r, saw", "row, r, saw", "mma packed",
         "race wrong nan"),
        ("statistics of the first row", "head) + row * params_.stats.row", "head)", "mma statistics", "race"),
        ("statistics of the row before", "saw ? softmax_.reference[r]", "saw ? softmax_.reference[r ^ 1]",
         "mma statistics"),
        ("a row's sum in place of its reciprocal", "saw ? 1 / softmax_.sum[r].value()", "saw ? softmax_.sum[r].value()",
         "mma statistics"),
        ("queries keep their sign", "params_.scale < 0", "false", "mma negative scale"),
        ("queries always change their sign", "params_.scale < 0", "true", "mma"),
    ),
)
# fmt: on
