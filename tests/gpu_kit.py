"""What tests of a GPU share. The fixture is in conftest."""

from __future__ import annotations

import pytest
from naive import assert_close, naive
from oracles import oracle

from flashcupy import reference


@pytest.fixture
def cp():
    return oracle("cupy")


def require_right(out, q, k, v, **options):
    """Hold an output, on the host, to the contract's bound."""
    want, _ = reference.attention(q, k, v, **options)
    assert_close(out, want, naive(q, k, v, q.dtype, **options)[0])
