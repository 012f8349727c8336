"""FlashAttention 3 and 4, where their files were brought along in the folder FLASHCUPY_PEERS.

README.md says what the folder holds and how it is made.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError, require_dtype, require_plain
from bench.gpu.candidates.torch_sdpa import sdpa
from bench.gpu.candidates.torch_tools import capture, prepare_call
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem

FA3_FILE, FA3_NEEDS, FA4_ARCHIVE = "_C.so.xz", "libcudart.so.12", "fa4.tar.xz"


def candidates() -> list[Candidate]:
    return [Candidate("FA3", prepare_fa3), Candidate("FA4", prepare_fa4)]


def prepare_fa3(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare FlashAttention 3 behind torch's flash backend, which it replaces during its own calls."""
    require_plain(problem)
    require_dtype(problem, "float16", "bfloat16")
    load_fa3()
    return prepare_call(problem, operands, sdpa(problem, operands), around=_fa3_in_place_of_fa2)


def prepare_fa4(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare FlashAttention 4, in its own layout."""
    require_plain(problem, "window", "softcap")
    require_dtype(problem, "float16", "bfloat16")
    flash_attn_func = load_fa4()
    options = {
        "causal": problem.causal,
        "window_size": operands.arguments.get("window", (None, None)),
        "softcap": operands.arguments.get("softcap", 0.0),
    }

    def attention(q: Any, k: Any, v: Any) -> Any:
        result = flash_attn_func(q, k, v, **options)
        return result[0] if isinstance(result, tuple) else result

    return prepare_call(problem, operands, attention, packed_heads=True, capture=capture)


@contextmanager
def _fa3_in_place_of_fa2() -> Iterator[None]:
    import torch.nn.attention as attention

    attention.activate_flash_attention_impl("FA3")
    try:
        with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
            yield
    finally:
        attention.restore_flash_attention_impl()


def peers_file(name: str) -> Path:
    """Return a file of the folder FLASHCUPY_PEERS, or say that it is not there."""
    folder = os.environ.get("FLASHCUPY_PEERS")
    if not folder:
        raise UnavailableError("FLASHCUPY_PEERS names no folder with its files")
    if not (file := Path(folder) / name).exists():
        raise UnavailableError(f"the folder FLASHCUPY_PEERS has no {name}")
    return file


@functools.cache
def load_fa3() -> None:
    """Register FlashAttention 3's operators with torch."""
    packed, needs = peers_file(FA3_FILE), peers_file(FA3_NEEDS)
    import torch

    library = Path(tempfile.mkdtemp()) / "_C.so"
    with lzma.open(packed) as source, library.open("wb") as target:
        shutil.copyfileobj(source, target)
    ctypes.CDLL(str(needs), mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))
    # torch imports this name to find operators that are registered by now.
    sys.modules["flash_attn_interface"] = types.ModuleType("flash_attn_interface")


@functools.cache
def load_fa4() -> Any:
    """Unpack FlashAttention 4 and import its function."""
    archive = peers_file(FA4_ARCHIVE)
    folder = tempfile.mkdtemp()
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    # The second is what the .pth file of the kernel language's wheel would add.
    sys.path[:0] = [folder, f"{folder}/nvidia_cutlass_dsl/dsl_packages"]
    return importlib.import_module("flash_attn.cute").flash_attn_func
