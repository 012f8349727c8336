"""The candidates of a section, best known first, so that what a budget cuts is the least telling."""

from __future__ import annotations

from bench.gpu.candidates import brought, jax_cudnn, naive, ours, torch_flex, torch_sdpa
from bench.gpu.candidates.base import Candidate


def peers() -> list[Candidate]:
    return [
        *torch_sdpa.candidates(),
        *brought.candidates(),
        *torch_flex.candidates(),
        *jax_cudnn.candidates(),
        *naive.candidates(),
    ]


def everyone() -> list[Candidate]:
    return [*ours.candidates(), *peers()]
