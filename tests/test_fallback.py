"""When a kernel family does not work here, the next serves, and one warning says so."""

from __future__ import annotations

import pytest

from flashcupy.cuda import fallback
from flashcupy.errors import FirstUseError, KernelCompileError

FAMILIES = ("sm90", "sm80", "generic")
COMPILE = KernelCompileError("fwd_sm90", ("-arch=sm_90a",), "line 2: error\nline 3: another")
CHECK = FirstUseError("fwd_sm80", "Fake GPU", "row 3 is wrong", "/cache/x.verdict")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(fallback, "_told", set())
    for name in ("FLASHCUPY_FALLBACK", "FLASHCUPY_FAMILY"):
        monkeypatch.delenv(name, raising=False)


def serve(errors, device="cuda:0", families=FAMILIES):
    """The family that serves where those in `errors` fail, and what was tried."""
    tried = []

    def attempt(family):
        tried.append(family)
        if family in errors:
            raise errors[family]
        return family.upper()

    return fallback.first_that_works(fallback.candidates(families), attempt, device), tried


def test_the_preferred_family_serves_without_a_word():
    assert serve({}) == ("SM90", ["sm90"])
    assert serve({"generic": COMPILE}, families=("sm90", "generic")) == ("SM90", ["sm90"])


@pytest.mark.parametrize(("error", "reason"), [(COMPILE, "fwd_sm90 does not compile"), (CHECK, "row 3 is wrong")])
def test_the_next_serves_and_a_warning_says_why_once_per_family_and_device(error, reason):
    match = rf"family sm90 does not work on cuda:0, sm80 serves.*{reason}.*FLASHCUPY_FALLBACK=error"
    with pytest.warns(RuntimeWarning, match=match) as caught:
        assert serve({"sm90": error}) == ("SM80", ["sm90", "sm80"])
    assert "line 3" not in str(caught[0].message)
    assert serve({"sm90": error})[0] == "SM80"  # a second warning would be an error
    with pytest.warns(RuntimeWarning, match="cuda:1"):
        serve({"sm90": error}, device="cuda:1")
    with pytest.warns(RuntimeWarning, match="sm80 does not work on cuda:0, generic serves"):
        assert serve({"sm90": error, "sm80": CHECK})[0] == "GENERIC"


@pytest.mark.filterwarnings("ignore:kernel family")
def test_the_last_familys_error_propagates():
    last = KernelCompileError("fwd_generic", (), "no")
    with pytest.raises(KernelCompileError) as caught:
        serve({"sm90": COMPILE, "sm80": CHECK, "generic": last})
    assert caught.value is last


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk"), NotImplementedError("no"), MemoryError()])
def test_other_errors_are_no_reason_to_fall_back(error):
    with pytest.raises(type(error)) as caught:
        serve({"sm90": error})
    assert caught.value is error


def test_fallback_can_be_an_error(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_FALLBACK", "error")
    with pytest.raises(FirstUseError):
        serve({"sm90": CHECK})


def test_a_misspelt_fallback_is_named(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_FALLBACK", "raise")
    with pytest.raises(ValueError, match="FLASHCUPY_FALLBACK is 'raise', expected warn or error"):
        serve({})  # though nothing fails


def test_a_family_asked_for_by_name_serves_alone(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_FAMILY", "sm80")
    assert serve({}) == ("SM80", ["sm80"])
    with pytest.raises(FirstUseError):
        serve({"sm80": CHECK})


def test_an_unknown_family_is_named_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_FAMILY", "sm100")
    with pytest.raises(ValueError, match=r"FLASHCUPY_FAMILY is 'sm100', .* sm90, sm80, generic"):
        serve({})
