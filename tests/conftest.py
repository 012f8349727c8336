from __future__ import annotations

import pytest
from backends import BACKENDS, why_no_gpu
from emulated import mark_slow


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the same test body on every backend this machine has."""
    with request.param.active():
        yield request.param


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" looks
def pytest_collection_modifyitems(items):
    mark_slow(items)


@pytest.hookimpl(trylast=True)  # when what -m leaves out is gone
def pytest_collection_finish(session):
    for item in session.items:
        if item.get_closest_marker("gpu") and why_no_gpu():
            item.add_marker(pytest.mark.skip(reason=why_no_gpu()))
