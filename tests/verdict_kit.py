"""Kernels, checks and a forgetful process, for tests of first-use verdicts."""

from __future__ import annotations

from fake_device import FakeDevice

from flashcupy.cuda import verdicts
from flashcupy.cuda.compile import LoadedKernel

DEVICE = FakeDevice()


def new_process(monkeypatch):
    """Forget what this process knows."""
    monkeypatch.setattr(verdicts, "_good", set())
    monkeypatch.setattr(verdicts, "_unwritten", {})


def make_kernel(folder, name="fwd_fake", digest="d0" * 32):
    return LoadedKernel(name, 128, 0, None, digest, folder / f"{digest[:32]}.bin")


def ensure(device, kernels, run, launched=None):
    """`run` is what follows the launch of the kernels, or of those in `launched`."""

    def launch():
        verdicts.note_launches(kernels if launched is None else launched)
        return run()

    verdicts.ensure_checked(device, kernels, lambda: launch)


class Check:
    """What `run` does, counted."""

    def __init__(self, outcome=None):
        self.outcome, self.calls = outcome, 0

    def __call__(self):
        self.calls += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def verdict_files(folder):
    return sorted(folder.glob("*.verdict"))
