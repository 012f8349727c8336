"""Running plans: find or make the plan of a call, bring small host arrays to the device, fill in addresses, launch."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np

from flashcupy.cuda import config
from flashcupy.cuda.compile import LoadedKernel, is_compiled, load_kernel, loaded_kernel
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.params import UPLOAD_WORDS, UploadParams
from flashcupy.cuda.plan import Plan
from flashcupy.cuda.verdicts import ensure_checked, is_checked
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

    def run(
        self, device: Device, addresses: dict[str, int], host: Sequence[tuple[str, np.ndarray]], result: Any
    ) -> None:
        """Launch everything on the current stream, into `result` among others.

        `addresses` gives those of all slots but temporary ones.
        """
        start = 0
        if self.workspace_bytes:
            # Freed on return, which is in stream order: the pool gives it to later work of this stream only.
            workspace = device.empty((self.workspace_bytes,), _BYTE)
            start = runtime().pointer(workspace)
            outlive_graph(device, result, workspace)
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
        step = 4 * UPLOAD_WORDS
        for offset in range(0, len(content), step):
            part = content[offset : offset + step]
            words = len(part) // 4
            params = bytearray(_UPLOAD_SIZE)
            _UPLOAD_HEADER.pack_into(params, 0, start + offset, words, 0)
            params[_UPLOAD_DATA : _UPLOAD_DATA + len(part)] = part
            blocks = -(-words // self.upload.threads)
            device.launch(self.upload.handle, blocks, self.upload.threads, 0, params)


def outlive_graph(device: Device, result: Any, *arrays: Any) -> None:
    """While a graph is captured, tie the life of what it writes besides its result to the result's.

    Each replay writes all of it again: memory that went back to the pool would be somebody else's by then.
    """
    if device.is_capturing():
        weakref.finalize(result, _release, arrays).atexit = False


def _release(arrays: tuple[Any, ...]) -> None:
    """Drop the last references."""


_BYTE = np.dtype(np.uint8)
_UPLOAD_DATA = UploadParams.data.offset
_UPLOAD_SIZE = -(-(_UPLOAD_DATA + 4 * UPLOAD_WORDS) // 8) * 8
assert UploadParams.words.offset == 8


def prepare(
    device: Device, plan: Plan, host: Sequence[tuple[str, np.ndarray]], check: Callable[[], str | None]
) -> ReadyPlan:
    """Load a plan's kernels, and check those that are new on this GPU with `check`.

    Raises
    ------
    NotWarmedUpError
        Under graph capture, for a kernel that is not loaded and checked.
    KernelCompileError, FirstUseError
    """
    configs = [record.config for record in plan.launches]
    if device.is_capturing():
        return _ready(plan, host, *_loaded_before(device, configs, bool(host)))
    kernels = tuple(load_kernel(device, one) for one in configs)
    upload = load_kernel(device, config.UPLOAD) if host else None
    ensure_checked(device, [*kernels, *([upload] if upload else [])], check)
    return _ready(plan, host, kernels, upload)


def _loaded_before(
    device: Device, configs: Sequence[Any], upload: bool
) -> tuple[tuple[LoadedKernel, ...], LoadedKernel | None]:
    kernels = []
    for one in (*configs, *((config.UPLOAD,) if upload else ())):
        kernel = loaded_kernel(device, one)
        if kernel is None or not is_checked(device, [kernel]):
            raise NotWarmedUpError(
                f"kernel {one.name} is used for the first time while a CUDA graph is captured: call flashcupy.warmup "
                "with the same arguments before the capture"
            )
        kernels.append(kernel)
    return (tuple(kernels[:-1]), kernels[-1]) if upload else (tuple(kernels), None)


def _ready(
    plan: Plan,
    host: Sequence[tuple[str, np.ndarray]],
    kernels: tuple[LoadedKernel, ...],
    upload: LoadedKernel | None,
) -> ReadyPlan:
    uploads, end = {}, 0
    for slot, array in host:
        uploads[slot] = end
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return ReadyPlan(plan, kernels, upload, uploads, end)


def is_ready(device: Device, plan: Plan) -> bool:
    """Whether all kernels are compiled."""
    return all(is_compiled(device, record.config) for record in plan.launches)
