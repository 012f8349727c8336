"""Faults in the kernels that score blocks."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

# fmt: off
BLOCK_SCORES: tuple[Fault, ...] = (
    *faults_in(
        "block_mass.cu",
        ("rows of the first tile alone", "row < end; row += Tiles::kOwner",
         "row < end && row == first; row += Tiles::kOwner", "block mass"),
        ("keys of the first piece", "first = work_.chunk * columns_", "first = 0", "block mass"),
        ("partial tiles as if they were full", "if (Hooks::kHides || schedule.partial(tile))", "if (Hooks::kHides)",
         "block mass"),
        ("the key head of another group", "work_.head / (params_.q_heads / params_.kv_heads)",
         "work_.head % params_.kv_heads", "block mass"),
        ("no barrier between parts and their sum", "        block_sync();\n        const i32 high",
         "        const i32 high", "block mass", "race uninitialised"),
        ("cells beyond the last", "column >= ceil_div(params_.kv_len, mass_.block_k)", "false", "block mass",
         "race wrong bounds"),
        ("all columns of a tile in each of its cells", "c = j * columns; c < (j + 1) * columns",
         "c = 0; c < Tiles::kColumns", "block mass"),
        ("all rows of a tile in each of its cells", "t = i * thread_rows; t < (i + 1) * thread_rows",
         "t = 0; t < Tiles::kThreadRows", "block mass"),
        ("rows beyond the length count as scores", "inverse_sum_[r] != 0 && (!kMasked", "(!kMasked",
         "block mass of a steep slope", "nan"),
        ("rows that see nothing count as rows", "if (inverse_sum_[r] != 0) ++seeing_", "++seeing_",
         "block mass"),
        ("blocks that see nothing give NaN", "seeing == 0 ? 0 :", "", "block mass", "nan"),
    ),
    *faults_in(
        "pooled_scores.cu",
        ("the key head of another group", "work.head / (params.q_heads / params.kv_heads)",
         "work.head % params.kv_heads", "pooled scores"),
        ("scores of blocks beyond the last", " && column < own.k.length", "", "pooled scores", "race wrong bounds"),
    ),
    *faults_in(
        "block_means.cu",
        ("a ragged block is divided by a whole one's rows", "/ (end - first)", "/ params.block", "pooled scores"),
        ("the rows of the first head", "base(params.source, at.work, at.work.head)", "base(params.source, at.work, 0)",
         "pooled scores"),
    ),
)
# fmt: on
