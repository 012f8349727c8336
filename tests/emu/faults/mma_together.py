"""Faults of tiles that several heads own together, in the forward and in dq's kernel."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

_FORWARD, _BACKWARD = "mma heads together", "mma backward of heads together"
_OWN_FIRST, _TILES_FIRST = "Tiles::first_row(work)", "Tiles::first_tile_row(work)"
_SCHEDULED = ", Tiles::kHeadRows, shared.schedule),\n          first"
_WORK_HEAD = "        work.head *= Tiles::kHeads;  // the first of the tile\n"

# fmt: off
MMA_TOGETHER: tuple[Fault, ...] = (
    *faults_in(
        "tile/mma_tile.cuh",
        ("every warp has the first head", "kHeads == 1 ? 0 :", "kHeads > 0 ? 0 :", _FORWARD, "bounds"),
        ("warps take turns with heads", "/ (kWarps / kHeads);", "% kHeads;", f"{_FORWARD}, two warps each",
         "race bounds wrong"),
        ("tiles are as far apart as if they were of one head", "return work.tile * kHeadRows;",
         "return work.tile * kOwner;", _FORWARD, "wrong nan"),
    ),
    *faults_in(
        "tile/mma_copy.cuh",
        ("queries of the first head for all", "q.base + head * q.operand.head", "q.base", _FORWARD),
        ("queries of all heads in one place", "to + head * (Tiles::kHeadRows * Tiles::kHeadPitch), q.operand",
         "to, q.operand", _FORWARD, "race"),
        ("the last head's queries are not copied", "head < Tiles::kHeads", "head < Tiles::kHeads - 1", _FORWARD,
         "uninitialised"),
    ),
    *faults_in(
        "fwd_sm80.cu",
        ("features of the first head", "hooks_(params, work, Tiles::head(work)", "hooks_(params, work, work.head",
         _FORWARD),
        ("results to the first head", "const i32 head = Tiles::head(work);", "const i32 head = work.head;", _FORWARD,
         "race"),
        ("the sink of the first head", "base(params_.sinks, work, head)", "base(params_.sinks, work, work.head)",
         _FORWARD),
        ("statistics of the first head", "base(params_.stats, work, head)", "base(params_.stats, work, work.head)",
         _BACKWARD, "race"),
        ("a warp's own rows of each head", "first_row_ + Tiles::warp_head() * Tiles::kHeadRows", "first_row_",
         _FORWARD),
        ("lists of rows that a warp counts from", _TILES_FIRST + _SCHEDULED, _OWN_FIRST + _SCHEDULED, _FORWARD,
         "race divergence deadlock bounds wrong uninitialised"),
        ("tiles of neighbouring heads overlap", _WORK_HEAD, "", _FORWARD, "race wrong nan"),
        ("tiles are left out", "if (Tiles::first_tile_row(work) >= own.q.allotted)",
         "if (work.tile * Tiles::kOwner >= own.q.allotted)", _FORWARD, "wrong nan"),
    ),
    *faults_in(
        "bwd_sm80.cu",
        ("features of dq's first head", "hooks_(params, work, Tiles::head(work)", "hooks_(params, work, work.head",
         _BACKWARD),
        ("terms of the first head", "params.row_terms, work, Tiles::head(work)", "params.row_terms, work, work.head",
         _BACKWARD),
        ("gradients to the first head", "base(to, work, Tiles::head(work))", "base(to, work, work.head)", _BACKWARD,
         "race"),
        ("dq's queries of the first head for all", "bases.a + params_.q.head", "bases.a", _BACKWARD),
        ("upstream gradients of the first head for all", "bases.b + params_.dout.head", "bases.b", _BACKWARD),
        ("dq's queries of all heads in one place", "shared_.q + row * Tiles::kHeadPitch", "shared_.q", _BACKWARD,
         "race"),
        ("places of rows that the tile counts from", "Scores own(schedule_, hooks_, tile, Tiles::first_row(work)",
         "Scores own(schedule_, hooks_, tile, Tiles::first_tile_row(work)", _BACKWARD, "wrong bounds"),
        ("shares of sinks to the first head", "const i32 head = Tiles::head(work);", "const i32 head = work.head;",
         _BACKWARD, "race"),
        ("shares of the first head's sink", "base(params_.sinks, work, head)", "base(params_.sinks, work, work.head)",
         _BACKWARD),
        ("rows of the tile beyond the length are not there", "Tiles::first_row(own), queries.length",
         "Tiles::first_tile_row(own), queries.length", _BACKWARD),
    ),
)
# fmt: on
