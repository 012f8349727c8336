"""What importing flashcupy costs and what its messages may name."""

from __future__ import annotations

import inspect
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


def test_calls_on_host_arrays_load_nothing_for_gpus():
    call = "x = numpy.ones((2, 3, 4)); flashcupy.attention_bwd(x, flashcupy.attention_fwd(x, x, x)[1])"
    code = f"import json, sys, numpy, flashcupy; {call}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in json.loads(output) if name.startswith(("flashcupy.cuda", "cupy"))]


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


_PUBLIC_CALLS = [name for name in flashcupy.__all__ if inspect.isfunction(getattr(flashcupy, name))]


@pytest.mark.parametrize("name", _PUBLIC_CALLS)
def test_public_calls_are_documented_and_written_out(name):
    call = getattr(flashcupy, name)
    signature, doc = inspect.signature(call), inspect.getdoc(call)
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.parameters.values())
    sections = ["Returns"] if signature.return_annotation not in (None, "None") else []
    sections += ["Parameters", "Raises"] if signature.parameters else []
    missing = [s for s in (*sections, "Examples") if f"\n{s}\n{'-' * len(s)}\n" not in doc]
    assert not missing
    by_reference = set(inspect.signature(flashcupy.attention).parameters) if "and all options" in doc else set()
    for parameter in set(signature.parameters) - by_reference:
        assert re.search(rf"\b{parameter}\b", doc), parameter


def test_dense_calls_share_their_options():
    def options(name):
        parameters = inspect.signature(getattr(flashcupy, name)).parameters.values()
        own = {
            "return_lse",
            "out",
            "lse_out",
            "backward",
            "max_seqlen_q",
            "max_seqlen_k",
            "cu_seqlens_q",
            "cu_seqlens_k",
        }
        return [(p.name, p.default, p.kind) for p in parameters if p.name not in own and "seqlen" not in p.name]

    calls = ("attention_fwd", "attention_varlen", "attention_varlen_fwd", "explain", "warmup")
    assert all(options(name) == options("attention") for name in calls)
