"""Barriers and collectives that not all threads reach."""

from __future__ import annotations

import re

import numpy as np
import pytest
from emu.device import EmuDevice, EmuError, Settings
from emu.tiny import run

ORDERS = ("forward", "reverse", "random")


@pytest.fixture(params=ORDERS)
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, block_order=request.param))


def _words(device, *shape):
    return device.from_host(np.zeros(shape, np.uint32))


DIVERGENCE = {
    "two barriers": ("if (t < 32) block_sync();\nelse block_sync();", "block_sync();"),
    "one lane in another shuffle": ("if (t == 3) shuffle_xor(t, 1);\nelse shuffle_xor(t, 1);", "shuffle_xor(t, 1);"),
    "masks that differ": ("shuffle_xor(t, t == 3 ? 2 : 1);", "shuffle_xor(t, t < 32 ? 2 : 1);"),
    "a shuffle and a barrier of the warp": ("if (t % 2) shuffle_xor(t, 1); else warp_sync();", "warp_sync();"),
    "a lane that has exited": ("if (t == 9) return; shuffle_xor(t, 1);", "if (t >= 32) return; shuffle_xor(t, 1);"),
}


@pytest.mark.parametrize("case", DIVERGENCE)
def test_divergence(device, case):
    wrong, right = DIVERGENCE[case]
    run(device, right)
    with pytest.raises(EmuError, match=r"^divergence: "):
        run(device, wrong)


def test_a_deadlock_tells_who_waits_where(device):
    body = "if (t == 50) return;\nif (t < 16 || t >= 32) block_sync();\nelse warp_sync();"
    with pytest.raises(EmuError) as caught:
        run(device, body)
    told = re.sub(r" at \S+:(\d+)", r" at :\1", str(caught.value))
    assert told == (
        "deadlock: no thread can go on; threads 0-15 in block_sync at :2; threads 16-31 in warp_sync at :3; "
        "threads 32-49 in block_sync at :2; thread 50 exited; threads 51-63 in block_sync at :2; kernel tiny, block 0"
    )


def test_threads_that_have_exited_count_as_arrived(device):
    out = _words(device, 96)
    body = """
    s.row[t] = t;
    if (t % 3 == 0 || t >= 64) return;
    block_sync();
    warp_sync();
    p.out[t] = s.row[t / 3 * 3] + 1;
    """
    run(device, body, 96, 1, "u32 row[96];", out=out)
    t = np.arange(96)
    np.testing.assert_array_equal(out.get(), np.where((t % 3 == 0) | (t >= 64), 0, t // 3 * 3 + 1))
