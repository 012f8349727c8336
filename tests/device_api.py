"""flashcupy's calls for a device backend, on NumPy arrays: put the arguments, call, get the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import flashcupy as fc

_CALLS = (
    "attention",
    "attention_fwd",
    "attention_bwd",
    "attention_varlen",
    "attention_varlen_fwd",
    "attention_varlen_bwd",
    "merge_attention",
    "pooled_scores",
    "block_mass",
    "explain",
    "warmup",
)
_OUTPUTS = ("out", "lse_out")


class HostResiduals:
    """Residuals of a call on a device, with `out` and `lse` on the host; ``own`` is the real thing."""

    def __init__(self, own: fc.AttentionResiduals, transfer: _Transfer) -> None:
        self.own, self.transfer = own, transfer
        self.out, self.lse = transfer.get(own.out), transfer.get(own.lse)
        self.spec, self.seed = own.spec, own.seed


class DeviceApi:
    """Has the names of flashcupy that take or return arrays."""

    AttentionGrads = fc.AttentionGrads

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        for name in _CALLS:
            setattr(self, name, self._on_host_arrays(getattr(fc, name)))
        self.AttentionResiduals = SimpleNamespace(from_arrays=self._on_host_arrays(fc.AttentionResiduals.from_arrays))

    def put(self, x: np.ndarray) -> Any:
        """Bring one array to the device; gaps between its elements hold NaN, memory around it may not be touched."""
        return _Transfer(self._backend, [x], []).put(x)

    def _on_host_arrays(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [kwargs.get(name) for name in _OUTPUTS]
            transfer = _Transfer(self._backend, [*args, *kwargs.values()], list(_arrays(given)))
            result = function(*map(transfer.put, args), **{name: transfer.put(x) for name, x in kwargs.items()})
            transfer.write_back()
            return transfer.get(result)

        return call


class _Place(NamedTuple):
    """Where the memory of a host array is on the device."""

    host: np.ndarray
    memory: Any
    offset: int  # of the host array's lowest byte
    low: int  # its address


class _Transfer:
    """The arrays of one call. Those that share memory on the host share it on the device."""

    def __init__(self, backend: Any, arguments: list[Any], outputs: list[np.ndarray]) -> None:
        self._backend, self._outputs = backend, outputs
        self._there: dict[int, Any] = {}  # by the id of the host array
        self._here: dict[int, np.ndarray] = {}  # by the id of the device array
        self.places: dict[int, _Place] = {}  # by the id of the host array that owns memory
        earlier = [x.transfer for x in arguments if isinstance(x, HostResiduals)]
        by_root: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        for x in _arrays(arguments):
            by_root[id(_root(x))][id(x)] = x
        for views in by_root.values():
            self._bring(list(views.values()), earlier)

    def _bring(self, views: list[np.ndarray], earlier: list[_Transfer]) -> None:
        # A view that is alone comes without what lies between its elements.
        root = views[0] if len(views) == 1 else _root(views[0])
        place = self._place_of_output(views, earlier) or self._copy(root)
        self.places[id(place.host)] = place
        for x in views:
            start = _address(x) - place.low if x.size else 0
            self._there[id(x)] = there = self._backend.view(place.memory, place.offset + start, x)
            self._here[id(there)] = x

    def _place_of_output(self, views: list[np.ndarray], earlier: list[_Transfer]) -> _Place | None:
        """Outputs in memory of the forward's arrays go there too; what is only read comes with its present values."""
        if not any(x is output for x in views for output in self._outputs):
            return None
        known = [transfer.places.get(id(_root(views[0]))) for transfer in earlier]
        return next((place for place in known if place is not None), None)

    def _copy(self, root: np.ndarray) -> _Place:
        low, high = np.lib.array_utils.byte_bounds(root) if root.size else (0, 0)
        content = np.full(high - low, 0xFF, np.uint8)
        if root.size:
            np.ndarray(root.shape, root.dtype, content, _address(root) - low, root.strides)[...] = root
        memory, offset = self._backend.put_bytes(content, low % 64)
        return _Place(root, memory, offset, low)

    def put(self, x: Any) -> Any:
        if isinstance(x, HostResiduals):
            return x.own
        if isinstance(x, fc.AttentionGrads):
            return fc.AttentionGrads(*map(self.put, x))
        if isinstance(x, (list, tuple)):
            return type(x)(map(self.put, x))
        return self._there.get(id(x), x)

    def write_back(self) -> None:
        for x in self._outputs:
            x[...] = self._backend.get(self._there[id(x)])

    def get(self, x: Any) -> Any:
        """The caller's own object for what was written into it."""
        if isinstance(x, fc.AttentionResiduals):
            return HostResiduals(x, self)
        if isinstance(x, fc.AttentionGrads):
            return fc.AttentionGrads(*map(self.get, x))
        if isinstance(x, tuple):
            return tuple(map(self.get, x))
        if id(x) in self._here:
            return self._here[id(x)]
        return self._backend.get(x) if hasattr(x, "__cuda_array_interface__") else x


def _arrays(arguments: Any) -> Iterator[np.ndarray]:
    """The arrays among arguments that a device can hold."""
    for x in arguments:
        if isinstance(x, (list, tuple)):
            yield from _arrays(x)
        elif type(x) is np.ndarray and x.dtype.isnative and not x.dtype.hasobject:
            yield x


def _root(x: np.ndarray) -> np.ndarray:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]
