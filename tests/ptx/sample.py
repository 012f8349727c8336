"""Of the cases of first-use checks a sample, and what of the kernels it has to reach."""

from __future__ import annotations

import re

_FEATURES = ("softcap", "bias", "alibi", "mask", "dropout")
_ENDING = rf"((?:_(?:{'|'.join(_FEATURES)}))*)"
_TILED = re.compile(rf"(\w+?)_(generic|sm80)_(split_tf32|[a-z0-9]+)_.*?(band|list){_ENDING}")
_SCORES = re.compile(rf"(block_mass|pooled_scores)_.*?{_ENDING}")

_EVERYTHING = "softcap-bias-alibi-mask-dropout-blocks64x64"
_GRADIENTS = "bwd-q-k-v-sinks"
_TENSOR_CORES = (
    *(f"float32-d64-v64-{_GRADIENTS}-bias-{features}" for features in (_EVERYTHING, "bias")),
    *(f"{dtype}-d64-v64-{_GRADIENTS}-bias-{_EVERYTHING}" for dtype in ("float16", "bfloat16")),
    *(f"{dtype}-d64-v64-{_GRADIENTS}-bias-bias" for dtype in ("float16", "bfloat16")),
    *(f"{dtype}-d32-v32-{_GRADIENTS}-deterministic" for dtype in ("float16", "bfloat16")),
    *(f"{dtype}-d64-v64-{_GRADIENTS}-deterministic-blocks64x64" for dtype in ("float16", "bfloat16")),
    "tf32-d64-v64-bwd-q-k-v-bias-deterministic-bias",
    f"tf32-d64-v64-{_GRADIENTS}-blocks64x64",
)
# Names of cases, by target. Chosen greedily: what each of them reaches, and the others do not.
SAMPLE = {
    "sm75": (
        f"float32-d64-v64-{_GRADIENTS}-bias-{_EVERYTHING}",
        "block_mass-float32-d24-softcap-bias-alibi-mask",
        "lists-topk-wide",
    ),
    "sm80": _TENSOR_CORES[2:],  # float32 adds no numbers, and takes longest
    "sm90": (
        *_TENSOR_CORES,
        # Tiles of other shapes: chunks, eight warps, one stage.
        f"bfloat16-d128-v128-{_GRADIENTS}",
        f"float16-d192-v192-{_GRADIENTS}-deterministic",
        "bfloat16-d256-v256-fwd",
        "tf32-d128-v128-fwd",
        f"float32-d128-v128-{_GRADIENTS}-deterministic",
        # Kernels without tensor cores.
        f"float64-d64-v64-{_GRADIENTS}-bias-{_EVERYTHING}",
        f"float64-d64-v64-{_GRADIENTS}-bias-bias",
        "float32-d8-v64-bwd-q-k-v",
        "float32-d8-v64-bwd-q-k-v-blocks16x16",
        "block_mass-float32-d24-softcap-bias-alibi-mask",
        *(f"{function}-{dtype}" for function in ("combine", "fill", "sum_batch") for dtype in ("float32", "float64")),
        *(f"pooled_scores-{dtype}-d24" for dtype in ("float32", "float64")),
        *(f"lists-{kind}" for kind in ("blocks", "ids", "topk", "topk-wide")),
        *(f"poison-{side}" for side in ("QueryHeads", "bias")),
    ),
}


def traits(kernel: str) -> set[str]:
    """What a kernel's name says of it, but for its tiles: its function, numbers and schedule; each of its features."""
    if tiled := _TILED.fullmatch(kernel):
        function, family, numbers, schedule, features = tiled.groups()
        own = {f"{function} {family} {numbers} {schedule}"}
        return own | {f"{function} {family} {one}" for one in _FEATURES if one in features}
    if scores := _SCORES.fullmatch(kernel):
        return {scores[1], *(f"{scores[1]} {one}" for one in _FEATURES if one in scores[2])}
    return {re.sub(r"(_[td]\d+)+$", "", kernel)}
