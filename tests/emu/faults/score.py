"""Faults in kernels_cu/score/: the hooks."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

# fmt: off
SCORE: tuple[Fault, ...] = (
    *faults_in(
        "score/scale.cuh",
        ("gradients without the scale", "gradient *= scale", "gradient *= 1", "backward"),
    ),
    *faults_in(
        "score/softcap.cuh",
        ("no derivative", "scale) * (1 - t * t)", "scale)", "softcap"),
        ("no scale inside", "Tiles::scale(params) / params.softcap", "1 / params.softcap", "softcap"),
        ("the derivative of a hidden NaN leaks", "fragment.at[r][c] == 0 ? 0 : fragment", "fragment",
         "hidden by mask, softcap", "bits"),
    ),
    *faults_in(
        "score/alibi.cuh",
        ("the offset is dropped", "place.query(r, c) + offset - place", "place.query(r, c) - place", "alibi"),
        ("distances have a sign", "distance < 0 ? -distance : distance", "distance", "alibi without a band"),
        ("the slope of the tile's head", "base(params.slopes, work, head)", "base(params.slopes, work, work.head)",
         "alibi"),
    ),
    *faults_in(
        "score/bias.cuh",
        ("the bias of the tile's head", "base(params.bias, work, head)", "base(params.bias, work, work.head)",
         "bias"),
        ("-inf does not hide", "if (values[c] == -infinity<Acc>()) visible.set(r, c, false);", "", "hidden by bias",
         "bits"),
        ("bias in natural units", "value * static_cast<Acc>(kLog2E)", "value", "bias"),
        ("bias read beyond its rows", "if (!visible(r, c)) continue;", "", "bias", "bounds nan"),
    ),
    *faults_in(
        "score/mask.cuh",
        ("the mask of the tile's head", "start(base(params.mask, work, head))",
         "start(base(params.mask, work, work.head))", "mask of heads"),
        ("the mask shows what the schedule hides", "if (visible(r, c))", "", "mask", "bounds wrong nan"),
    ),
    *faults_in(
        "score/hooks.cuh",
        ("the mask's rows and columns swapped", "place.query(r, c) * operand.row + place.key(r, c) * operand.column",
         "place.query(r, c) * operand.column + place.key(r, c) * operand.row", "mask", "wrong nan bounds"),
    ),
    *faults_in(
        "score/dropout.cuh",
        ("every batch entry drops the same", "(offset >> 32), work.batch, head", "(offset >> 32), 0, head",
         "dropout"),
        ("every head drops the same", "(offset >> 32), work.batch, head", "(offset >> 32), work.batch, 0", "dropout"),
        ("dk and dv draw for the key head", "(offset >> 32), work.batch, head",
         "(offset >> 32), work.batch, work.head", "dropout"),
        ("an offset of 32 bits", "static_cast<u32>(offset >> 32)", "0", "dropout"),
        ("a seed of 32 bits", "static_cast<u32>(seed >> 32)", "0", "dropout"),
        ("a seed in device memory is ignored", "params.seed_words ? params.seed_words[0] : params.seed",
         "params.seed", "seed on the device"),
        ("rows and columns swapped", "keeps_score(place.query(r, c), place.key(r, c))",
         "keeps_score(place.key(r, c), place.query(r, c))", "dropout"),
        ("dk and dv draw for key and query swapped", "keeps_score(place.query(r, c), place.key(r, c))",
         "keeps_score(place.owner(r), place.walked(c))", "dropout"),
        ("six rounds", "round < 7", "round < 6", "dropout"),
        ("keeps one in 256 more", "255u) < threshold", "255u) <= threshold", "dropout"),
        ("nothing survives, 256 / 0", "threshold == 0 ? Acc{0} : 256", "256", "dropout of everything", "nan"),
    ),
)
# fmt: on
