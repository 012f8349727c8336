from __future__ import annotations

import pytest
from backends import BACKENDS


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    """Run the same test body on every backend this machine has."""
    return request.param
