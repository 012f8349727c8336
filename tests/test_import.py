"""What importing flashcupy costs and what its messages may name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import flashcupy

HEAVY = ("cupy", "scipy", "matplotlib", "torch", "jax", "ml_dtypes")


@pytest.mark.parametrize("module", ["flashcupy", "flashcupy.__main__"])
def test_import_pulls_in_no_optional_package(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(json.loads(output)) & set(HEAVY)


def test_every_public_name_exists():
    assert flashcupy.__all__
    assert [name for name in flashcupy.__all__ if not hasattr(flashcupy, name)] == []


def test_every_extra_named_in_a_message_exists():
    declared = set(metadata.metadata("flashcupy").get_all("Provides-Extra") or ())
    sources = Path(flashcupy.__file__).parent.rglob("*.py")
    named = {extra for source in sources for extra in re.findall(r"flashcupy\[([\w-]+)\]", source.read_text("utf-8"))}
    assert named
    assert named <= declared


def test_version_is_the_installed_one():
    assert metadata.version("flashcupy") == flashcupy.__version__
