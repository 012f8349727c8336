"""Switches of the CUDA backend in the environment."""

from __future__ import annotations

import logging

import pytest

from flashcupy.cuda import environment


def test_debug_prints_unless_the_program_handles_the_logger(monkeypatch, capsys):
    monkeypatch.setattr(environment, "LOG", logging.Logger("flashcupy"))
    environment.show_log()
    assert environment.LOG.handlers == []
    monkeypatch.setenv("FLASHCUPY_DEBUG", "1")
    environment.show_log()
    environment.show_log()
    environment.LOG.debug("compiled %s", "fwd")
    assert capsys.readouterr().err == "flashcupy: compiled fwd\n"


@pytest.mark.parametrize("name", ["FLASHCUPY_DEBUG", "FLASHCUPY_LINEINFO"])
def test_a_switch_is_0_or_1(monkeypatch, name):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(ValueError, match=f"{name} is 'yes', expected 0 or 1"):
        environment.switch(name)
