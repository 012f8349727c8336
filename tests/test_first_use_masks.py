"""First-use checks find wrong kernels that build masks, and those that mark nothing where a mask lacks blocks."""

from __future__ import annotations

import first_use_kit
import numpy as np
import pytest
from wrong_kernels import WrongPlain

import flashcupy as fc
from flashcupy.cuda import config
from flashcupy.errors import FirstUseError


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    with config.use_tiles("small"):
        yield first_use_kit.fresh_gpu(monkeypatch, tmp_path)


_FIRST_TWICE = "if (block_index() == 2 && thread_index() == 0) params.own.order[0] = params.own.order[1];"
_WRONG_LISTS = {
    "lists": ("SCAN_ROWS", {"behind": "block_sync();" + _FIRST_TWICE}, "order must name each row once"),
    "blocks": (
        "WORDS_OF_BLOCKS",
        {"behind": "if (block_index() == 0 && thread_index() == 0) params.lists.own.full_words[0] ^= 2;"},
        "lists-blocks: ",
    ),
}


@pytest.mark.parametrize("what", _WRONG_LISTS)
def test_wrong_lists_are_refused(gpu, monkeypatch, what):
    name, wrong, words = _WRONG_LISTS[what]
    blocks = gpu.from_host(np.ones((2, 3), np.bool_))
    monkeypatch.setattr(config, name, WrongPlain.of(getattr(config, name), **wrong))
    with gpu.using(detect_races=False), pytest.raises(FirstUseError, match=words):
        fc.BlockMask.from_blocks(blocks, (32, 48), block_size=16)


@pytest.mark.parametrize("mode", ["first-use", "1"])
def test_what_marks_missing_blocks_is_checked(gpu, monkeypatch, mode):
    """A mask with room enough is served, whatever the mode; where nothing would be marked the call is refused."""
    monkeypatch.setenv("FLASHCUPY_CHECK", mode)
    q = gpu.from_host(np.random.default_rng(0).standard_normal((2, 32, 8)).astype(np.float32))
    blocks = gpu.from_host(np.ones((2, 2), np.bool_))
    mask = fc.BlockMask.empty((32, 32), capacity=4, block_size=16, device="cuda:0")
    fc.BlockMask.from_blocks(blocks, (32, 32), block_size=16, out=mask)
    assert np.isfinite(fc.attention(q, q, q, block_mask=mask).get()).all()
    first_use_kit.forget(monkeypatch)
    wrong = WrongPlain.of(config.poison_config("QueryRows"), instead=";")
    monkeypatch.setattr(config, "poison_config", lambda side: wrong)
    with pytest.raises(FirstUseError, match="has numbers where blocks are missing"):
        fc.attention(q, q, q, block_mask=mask)
