"""The calls of the C interface that make block masks and rewrite them."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcupy import arrays
from flashcupy.arrays import HOST
from flashcupy.block_mask import BlockMask
from flashcupy.blocks.grid import check_block_size
from flashcupy.capi.masks import MaskTable
from flashcupy.capi.places import cuda_device, on_stream
from flashcupy.capi.tensors import Tensor, TensorReader

_DEFAULT_BLOCK = 64
_CPU, _CUDA = 1, 2
_DIMS = ("batch", "heads")


class MaskCalls:
    """What the entries call for block masks. Every mask has fixed addresses, so that all can be rewritten."""

    def __init__(self, ffi: Any, masks: MaskTable) -> None:
        self._ffi, self._masks = ffi, masks

    def from_blocks(self, options: Any, blocks: Tensor, stream: Any, mask: Any) -> None:
        device = _device(options)
        with on_stream(device, self._address(stream)):
            table = TensorReader(self._ffi).required(blocks, "blocks")
            dims = (1, 1, *table.shape[:-2])[-2:]
            batch, heads = (_agreed(options, name, extent) for name, extent in zip(_DIMS, dims, strict=True))
            if arrays.on_host(table):
                capacity = max(options.capacity, int(np.count_nonzero(table)))
            else:
                capacity = options.capacity or table.size
            new = _empty(options, device, capacity, options.partial_capacity, batch, heads)
            self._add(BlockMask.from_blocks(table, **_shape(options), out=new), mask)

    def from_csr(
        self, options: Any, indptr: Tensor, indices: Tensor, partial: Tensor, bits: Tensor, stream: Any, mask: Any
    ) -> None:
        device = _device(options)
        with on_stream(device, self._address(stream)):
            lists = self._csr(indptr, indices, partial, bits)
            batch, heads = options.batch or 1, options.heads or 1
            # A PARTIAL block all of whose elements are visible becomes a FULL one.
            capacity = max(options.capacity, lists["indices"].size)
            marked = 0 if lists["partial"] is None else int(np.count_nonzero(lists["partial"]))
            new = _empty(options, device, capacity, max(options.partial_capacity, marked), batch, heads)
            self._add(BlockMask.from_csr(**lists, **_shape(options), batch=batch, heads=heads, out=new), mask)

    def update_from_blocks(self, mask: Any, blocks: Tensor, stream: Any) -> None:
        with self._masks.using():
            out = self._masks.of_call(mask)
            with on_stream(_device_of(out), self._address(stream)):
                table = TensorReader(self._ffi).required(blocks, "blocks")
                BlockMask.from_blocks(table, out.shape[2:], block_size=out.block_size, out=out)

    def update_from_csr(
        self, mask: Any, indptr: Tensor, indices: Tensor, partial: Tensor, bits: Tensor, stream: Any
    ) -> None:
        with self._masks.using():
            out = self._masks.of_call(mask)
            with on_stream(_device_of(out), self._address(stream)):
                batch, heads, *_ = out.shape
                lists = self._csr(indptr, indices, partial, bits)
                BlockMask.from_csr(
                    **lists, shape=out.shape[2:], block_size=out.block_size, batch=batch, heads=heads, out=out
                )

    def check(self, mask: Any) -> None:
        with self._masks.using():
            own = self._masks.of_call(mask)
            with on_stream(_device_of(own), 0):
                own.check()

    def destroy(self, mask: Any) -> None:
        self._masks.destroy(mask)

    def _csr(self, indptr: Tensor, indices: Tensor, partial: Tensor, bits: Tensor) -> dict[str, Any]:
        reader = TensorReader(self._ffi)
        lists = {
            "indptr": reader.required(indptr, "indptr"),
            "indices": reader.required(indices, "indices"),
            "partial": reader.optional(partial, "partial"),
            "bits": reader.optional(bits, "bits"),
        }
        for name, array in lists.items():
            if array is not None and not arrays.on_host(array):
                raise ValueError(f"{name} is in device memory, expected host memory")
        return lists

    def _add(self, made: BlockMask, mask: Any) -> None:
        mask[0] = self._masks.add(made)

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))


def _shape(options: Any) -> dict[str, Any]:
    size = (_block(options, "block_q"), _block(options, "block_k"))
    return {"shape": (options.q_len, options.kv_len), "block_size": size}


def _block(options: Any, name: str) -> int:
    size = getattr(options, name) or _DEFAULT_BLOCK
    try:
        check_block_size(size)
    except ValueError:
        raise ValueError(f"{name} is {size}, expected 16, 32, 64, 128 or a multiple of 128; 0 is 64") from None
    return size


def _agreed(options: Any, name: str, extent: int) -> int:
    wanted = getattr(options, name)
    if wanted not in (0, extent):
        raise ValueError(f"{name} is {wanted}, expected 0 or the {extent} of blocks")
    return extent


def _device(options: Any) -> Any:
    """The device that a new mask is to be on; None for the host."""
    kind, ordinal = options.device.device_type, options.device.device_id
    if options.flags:
        raise ValueError(f"block_mask_options.flags is {options.flags:#x}, expected 0")
    for name in ("q_len", "kv_len", "capacity", "partial_capacity", "batch", "heads"):
        if getattr(options, name) < 0:
            raise ValueError(f"{name} is {getattr(options, name)}, expected a number >= 0")
    if kind in (0, _CPU):
        return None
    if kind != _CUDA:
        raise ValueError(f"device_type is {kind}, expected FLASHCUPY_CPU or FLASHCUPY_CUDA_DEVICE")
    return cuda_device(ordinal, "block_mask_options")


def _device_of(mask: BlockMask) -> Any:
    return None if mask.device == HOST else cuda_device(int(mask.device.partition(":")[2]), "block_mask")


def _empty(options: Any, device: Any, capacity: int, partial_capacity: int, batch: int, heads: int) -> BlockMask:
    return BlockMask.empty(
        **_shape(options),
        capacity=capacity,
        partial_capacity=partial_capacity,
        batch=batch,
        heads=heads,
        device=None if device is None else device.name,
    )
