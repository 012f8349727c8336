"""Running plans: find or make the plan of a call, bring small host arrays to the device, fill in addresses, launch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import Any, Literal

import numpy as np

from flashcupy.cuda import config, workspace
from flashcupy.cuda.compile import KernelConfig, LoadedKernel, is_compiled, load_kernel, loaded_kernel
from flashcupy.cuda.device import Device
from flashcupy.cuda.first_use_plain import PlainCase, plain_case
from flashcupy.cuda.first_use_poison import PoisonCase, poison_case
from flashcupy.cuda.params import UPLOAD_WORDS, UploadParams
from flashcupy.cuda.plan import Plan
from flashcupy.cuda.verdicts import Check, ensure_checked, is_checked, note_launches
from flashcupy.errors import NotWarmedUpError

_MOST_PLANS = 1024
_U64 = Struct("<Q").pack_into
_UPLOAD_HEADER = Struct("<QiI")
_ALIGNMENT = 16


class PlanCache:
    """The plans in use, least recently used ones dropped; safe between threads."""

    def __init__(self, most: int = _MOST_PLANS) -> None:
        self._plans: OrderedDict[Any, ReadyPlan] = OrderedDict()
        self._most = most
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], ReadyPlan]) -> ReadyPlan:
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan
        plan = make()
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > self._most:
                self._plans.popitem(last=False)
        return plan


@dataclass(frozen=True, slots=True)
class ReadyPlan:
    """A plan whose kernels are loaded on a device. `uploads` places small host arrays behind the workspace."""

    plan: Plan
    kernels: tuple[LoadedKernel, ...]
    upload: LoadedKernel | None
    uploads: Mapping[str, int]
    upload_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.plan.workspace_bytes + self.upload_bytes

    def run(self, device: Device, addresses: dict[str, int], host: Sequence[tuple[str, np.ndarray]]) -> None:
        """Launch everything on the current stream. `addresses` gives those of all slots but temporary ones."""
        note_launches(self.kernels)
        start = 0
        if self.workspace_bytes:
            start, memory = workspace.take(device, self.workspace_bytes)
            if memory is not None:
                keep_new_for_graph(device, memory)
        for slot, offset in self.plan.workspace.items():
            addresses[slot] = start + offset
        if host:
            self._upload(device, start + self.plan.workspace_bytes, addresses, host)
        for record, kernel in zip(self.plan.launches, self.kernels, strict=True):
            params = bytearray(record.params)
            for offset, slot in record.slots:
                _U64(params, offset, addresses[slot])
            device.launch(kernel.handle, record.grid, kernel.threads, kernel.shared_bytes, params)

    def _upload(
        self, device: Device, start: int, addresses: dict[str, int], host: Sequence[tuple[str, np.ndarray]]
    ) -> None:
        content = bytearray(self.upload_bytes)
        for slot, array in host:
            offset = self.uploads[slot]
            content[offset : offset + array.nbytes] = array.tobytes()
            addresses[slot] = start + offset
        assert self.upload is not None
        note_launches((self.upload,))
        step = 4 * UPLOAD_WORDS
        for offset in range(0, len(content), step):
            part = content[offset : offset + step]
            words = len(part) // 4
            params = bytearray(_UPLOAD_SIZE)
            _UPLOAD_HEADER.pack_into(params, 0, start + offset, words, 0)
            params[_UPLOAD_DATA : _UPLOAD_DATA + len(part)] = part
            blocks = -(-words // self.upload.threads)
            device.launch(self.upload.handle, blocks, self.upload.threads, 0, params)


def keep_for_graph(device: Device, *arrays: Any) -> None:
    """Keep for good what a captured call uses besides the caller's arrays: graphs do not tell when they die.

    Each replay writes all of it again: memory that went back to the pool would be somebody else's by then.
    """
    if device.is_capturing():
        _of_graphs.append(arrays)


def keep_new_for_graph(device: Device, *arrays: Any) -> None:
    """`keep_for_graph` for what this call may have allocated.

    If that was in stream order, the graph owns it. With its memory still allocated no graph can be replayed again: the
    last reference has to go while it is captured.
    """
    if device.is_capturing():
        _of_graphs.append(tuple(array for array in arrays if not device.is_stream_ordered(array)))


_of_graphs: list[tuple[Any, ...]] = []
_UPLOAD_DATA = UploadParams.data.offset
_UPLOAD_SIZE = -(-(_UPLOAD_DATA + 4 * UPLOAD_WORDS) // 8) * 8
assert UploadParams.words.offset == 8


def prepare(
    device: Device,
    plan: Plan,
    host: Sequence[tuple[str, np.ndarray]],
    acc: Literal["float", "double"],
    check: Check | None = None,
) -> ReadyPlan:
    """Load a plan's kernels, and check those that are new on this GPU.

    `check` is for those that belong to a family; elementwise ones have checks of their own, in `acc`.

    Raises
    ------
    NotWarmedUpError
        Under graph capture, for a kernel that is not loaded and checked.
    KernelCompileError, FirstUseError
    """
    configs = [record.config for record in plan.launches]
    configs += [config.UPLOAD] if host else []
    kernels = _loaded_before(device, configs, acc) if device.is_capturing() else _checked(device, configs, acc, check)
    upload = kernels[len(plan.launches) :]
    return _ready(plan, host, tuple(kernels[: len(plan.launches)]), upload[0] if upload else None)


def make_ready(device: Device, configs: Sequence[KernelConfig], acc: Literal["float", "double"]) -> None:
    """Load and check elementwise kernels, for calls to come."""
    _checked(device, configs, acc, None)


def _checked(
    device: Device, configs: Sequence[KernelConfig], acc: Literal["float", "double"], check: Check | None
) -> list[LoadedKernel]:
    kernels = [load_kernel(device, one) for one in configs]
    with workspace.not_given():
        _check(device, configs, kernels, acc, check)
    return kernels


def _check(
    device: Device,
    configs: Sequence[KernelConfig],
    kernels: Sequence[LoadedKernel],
    acc: Literal["float", "double"],
    check: Check | None,
) -> None:
    own, plain = _split(configs, kernels, acc)
    if own:
        assert check is not None
        ensure_checked(device, own, check)
    for case, kernel in plain.items():
        ensure_checked(device, [kernel], partial(case.begin, device))


def _loaded_before(
    device: Device, configs: Sequence[KernelConfig], acc: Literal["float", "double"]
) -> list[LoadedKernel]:
    kernels = []
    for one in configs:
        kernel = loaded_kernel(device, one)
        if kernel is None:
            raise _not_warmed_up(one.name)
        kernels.append(kernel)
    own, plain = _split(configs, kernels, acc)
    for together in (own, *([kernel] for kernel in plain.values())):
        if not is_checked(device, together):
            raise _not_warmed_up(", ".join(kernel.name for kernel in together))
    return kernels


def _not_warmed_up(kernels: str) -> NotWarmedUpError:
    return NotWarmedUpError(
        f"kernel {kernels} is used for the first time while a CUDA graph is captured: call flashcupy.warmup with the "
        "same arguments, or build the mask once, before the capture"
    )


def _split(
    configs: Sequence[KernelConfig], kernels: Sequence[LoadedKernel], acc: Literal["float", "double"]
) -> tuple[list[LoadedKernel], dict[PlainCase | PoisonCase, LoadedKernel]]:
    """The kernels of a family, and elementwise ones by what checks them."""
    own: list[LoadedKernel] = []
    plain: dict[PlainCase | PoisonCase, LoadedKernel] = {}
    for one, kernel in zip(configs, kernels, strict=True):
        case = poison_case(one) or plain_case(one, acc)
        if case is None:
            own.append(kernel)
        else:
            plain[case] = kernel
    return own, plain


def _ready(
    plan: Plan,
    host: Sequence[tuple[str, np.ndarray]],
    kernels: tuple[LoadedKernel, ...],
    upload: LoadedKernel | None,
) -> ReadyPlan:
    uploads, end = {}, 0
    for slot, array in host:
        uploads[slot] = end
        end += _upload_bytes(array)
    return ReadyPlan(plan, kernels, upload, uploads, end)


def _upload_bytes(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT


def workspace_bytes(plan: Plan, host: Sequence[tuple[str, np.ndarray]]) -> int:
    """Temporary memory of a call, without making its plan ready."""
    return plan.workspace_bytes + sum(_upload_bytes(array) for _, array in host)


def is_ready(device: Device, plan: Plan, host: Sequence[tuple[str, np.ndarray]]) -> bool:
    """Whether all kernels are compiled, the one that brings host arrays over included."""
    configs = [record.config for record in plan.launches]
    return all(is_compiled(device, one) for one in (*configs, *((config.UPLOAD,) if host else ())))
