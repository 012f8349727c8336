"""Machine code for GeForce, where a double takes the time of 64 floats: float kernels have none in their loops."""

from __future__ import annotations

import re

import pytest
from nvrtc import SHARED_LIMITS
from sass import doubles_in_loops
from test_sass import listing_of, sm80

from flashcupy.cuda.config import row_terms_config, rows_config
from flashcupy.cuda.matrix import compile_configs
from flashcupy.cuda.table_sm80 import Need
from flashcupy.cuda.table_sm80_bwd import configure_gradient

ARCH = "sm_89"


def _found(config):
    return doubles_in_loops(listing_of(config.translation_unit(), config.name, ARCH))


@pytest.mark.parametrize(
    "config",
    [row_terms_config(precise=False), row_terms_config(precise=True), rows_config("float")],
    ids=lambda config: config.name,
)
def test_rows_are_prepared_without_doubles(config):
    """A few dozen of them a row take longer than the row's copies."""
    assert not _found(config)


def test_doubles_in_loops_are_seen():
    found = _found(rows_config("double"))
    assert found["DADD"] > 5
    assert found["DFMA"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("features", [(), ("dropout",)])
def test_tiles_of_tensor_cores_take_no_doubles(features):
    need = Need("bf16", 64, 64, features, None, SHARED_LIMITS[ARCH])
    assert not _found(sm80("bf16", 64, 64, ARCH, features))
    for kernel in ("dkvq", "dkv", "dq"):
        assert not _found(configure_gradient(kernel, need))


@pytest.mark.slow
def test_tiles_of_plain_products_take_no_doubles():
    names = re.compile(r"(fwd|dq|dkv)_generic_f32_o64\w*g1_band")
    configs = [one for one in compile_configs("plain", ARCH) if names.fullmatch(one.name)]
    assert len(configs) == 3
    for config in configs:
        assert not _found(config), config.name
