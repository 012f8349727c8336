"""The calls of the C interface that make block masks and rewrite them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from flashcupy import arrays
from flashcupy.arrays import HOST
from flashcupy.block_mask import BlockMask
from flashcupy.blocks.grid import Grid, check_block_size
from flashcupy.blocks.lists import BlockLists
from flashcupy.capi.masks import MaskTable
from flashcupy.capi.places import cuda_device, on_stream
from flashcupy.capi.tensors import Tensor, TensorReader

_DEFAULT_BLOCK = 64
_ON_HOST, _ON_CUDA = (0, 1, 3), (2, 13)  # as of tensors; all zero is the CPU
_DIMS = ("batch", "heads")


class MaskCalls:
    """What the entries call for block masks. Every mask has fixed addresses, so that all can be rewritten."""

    def __init__(self, ffi: Any, masks: MaskTable) -> None:
        self._ffi, self._masks = ffi, masks

    def from_blocks(self, options: Any, blocks: Tensor, stream: Any, mask: Any) -> None:
        device = _device(options)
        with self._on_stream(device, stream):
            table = TensorReader(self._ffi).required(blocks, "blocks")
            dims = (1, 1, *table.shape[:-2])[-2:]
            grid = _grid(options, *(_agreed(options, name, n) for name, n in zip(_DIMS, dims, strict=True)))
            if arrays.on_host(table):
                made = BlockMask.from_blocks(table, **_shape(options))
                self._add(_fixed(made.host_lists(), options, device), mask)
                return
            _require_device(table, device)
            if table.shape[-2:] != (grid.nq, grid.nk):
                raise ValueError(f"blocks has shape {table.shape}, expected (..., {grid.nq}, {grid.nk})")
            new = _empty(grid, device, options.capacity or grid.cells, options.partial_capacity)
            self._add(BlockMask.from_blocks(table, **_shape(options), out=new), mask)

    def from_csr(
        self, options: Any, indptr: Tensor, indices: Tensor, partial: Tensor, bits: Tensor, stream: Any, mask: Any
    ) -> None:
        device = _device(options)
        with self._on_stream(device, stream):
            lists = self._csr(indptr, indices, partial, bits)
            grid = _grid(options, options.batch or 1, options.heads or 1)
            made = BlockMask.from_csr(**lists, **_shape(options), batch=grid.batch, heads=grid.heads)
            self._add(_fixed(made.host_lists(), options, device), mask)

    def update_from_blocks(self, mask: Any, blocks: Tensor, stream: Any) -> None:
        with self._masks.using():
            out = self._masks.of_call(mask)
            device = _device_of(out)
            with self._on_stream(device, stream):
                table = TensorReader(self._ffi).required(blocks, "blocks")
                if not arrays.on_host(table):
                    _require_device(table, device)
                BlockMask.from_blocks(table, out.shape[2:], block_size=out.block_size, out=out)

    def update_from_csr(
        self, mask: Any, indptr: Tensor, indices: Tensor, partial: Tensor, bits: Tensor, stream: Any
    ) -> None:
        with self._masks.using():
            out = self._masks.of_call(mask)
            with self._on_stream(_device_of(out), stream):
                batch, heads, *_ = out.shape
                lists = self._csr(indptr, indices, partial, bits)
                BlockMask.from_csr(
                    **lists, shape=out.shape[2:], block_size=out.block_size, batch=batch, heads=heads, out=out
                )

    def check(self, mask: Any) -> None:
        with self._masks.using():
            own = self._masks.of_call(mask)
            device = _device_of(own)
            with on_stream(device, 0):
                if device is not None:
                    device.synchronize()  # streams that do not wait for the legacy one may still be writing it
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

    def _on_stream(self, device: Any, stream: Any) -> AbstractContextManager[Any]:
        return on_stream(device, int(self._ffi.cast("uintptr_t", stream)), "masks")


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
    if kind in _ON_HOST:
        return None
    if kind not in _ON_CUDA:
        raise ValueError(f"device_type is {kind}, expected FLASHCUPY_CPU or FLASHCUPY_CUDA_DEVICE")
    return cuda_device(ordinal, "block_mask_options")


def _device_of(mask: BlockMask) -> Any:
    return None if mask.device == HOST else cuda_device(int(mask.device.partition(":")[2]), "block_mask")


def _grid(options: Any, batch: int, heads: int) -> Grid:
    words = _shape(options)
    return Grid.make(words["shape"], words["block_size"], batch, heads)


def _require_device(table: Any, device: Any) -> None:
    own, expected = arrays.device_name(table), HOST if device is None else device.name
    if own != expected:
        raise ValueError(f"blocks is on {own}, expected {expected}, where the mask is, or host memory")


def _fixed(lists: BlockLists, options: Any, device: Any) -> BlockMask:
    """A mask of fixed addresses with these lists, and room for what the options ask for."""
    capacity, partial_capacity = max(options.capacity, lists.n_full), max(options.partial_capacity, lists.n_partial)
    return _empty(lists.grid, device, capacity, partial_capacity).overwrite(lists)


def _empty(grid: Grid, device: Any, capacity: int, partial_capacity: int) -> BlockMask:
    return BlockMask.empty(
        (grid.seqlen_q, grid.seqlen_k),
        block_size=grid.block_size,
        capacity=min(capacity, grid.cells),
        partial_capacity=min(partial_capacity, grid.cells),
        batch=grid.batch,
        heads=grid.heads,
        device=None if device is None else device.name,
    )
