"""Optional packages that tests compare against."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import nvrtc
import pytest

T = TypeVar("T")


def oracle(name: str) -> ModuleType:
    """Import an optional peer, or skip the calling test or module with the reason.

    ``FLASHCUPY_REQUIRE_ORACLES=1`` turns the skip into a failure, so that CI cannot lose a peer unnoticed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"compares against {name}, which cannot be imported ({error})"
        if os.environ.get("FLASHCUPY_REQUIRE_ORACLES") == "1":
            pytest.fail(f"FLASHCUPY_REQUIRE_ORACLES=1: {reason}", pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def nvrtc_library(major: int) -> nvrtc.Nvrtc:
    """Load an NVRTC, or skip with the reason where its wheel is not installed."""
    return installed(lambda: nvrtc.load(major))


def installed(find: Callable[[], T]) -> T:
    """Return what `find` finds of a wheel, or skip with the reason where that is not installed."""
    try:
        return find()
    except ImportError as error:
        if os.environ.get("FLASHCUPY_REQUIRE_ORACLES") == "1":
            pytest.fail(f"FLASHCUPY_REQUIRE_ORACLES=1: {error}", pytrace=False)
        pytest.skip(str(error))
