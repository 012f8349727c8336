"""The calls of the C interface: arguments are read, checked and handed to the library; what they return is text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from flashcupy import build, dispatch
from flashcupy.arrays import HOST
from flashcupy.capi.masks import MaskTable
from flashcupy.capi.options import DETERMINISTIC, OptionsReader
from flashcupy.capi.places import Workspace, lse_at, lse_bytes, on_stream, used_devices
from flashcupy.capi.tensors import NOWHERE, Tensor, TensorReader, device_of
from flashcupy.cpu.threads import set_num_threads
from flashcupy.options import Options
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads
from flashcupy.spec import AttentionProblem

# q, k, v, out, lse; dout, dlse; dq, dk, dv, dbias, dsinks: as they follow each other in the header.
_FORWARD = ("q", "k", "v", "out", "lse")
_Backward = tuple[AttentionResiduals, Any, Any, tuple[str, ...], bool, AttentionGrads]


class Calls:
    """What the entries call, with the block masks that there are."""

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self.masks = MaskTable(ffi)
        self._options = OptionsReader(ffi, self.masks)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: Any, stream: Any) -> None:
        reader = TensorReader(self._ffi)
        with self.masks.using(), self._on_stream(q, stream):
            problem = self._problem(reader, (q, k, v), options)
            target, logs = reader.required(out, "out"), reader.optional(lse, "lse")
            workspace = self._workspace(options, problem)
            if logs is None:
                logs = workspace.lse(problem)
            with workspace.serving():
                dispatch.compute(problem, target, logs)

    def backward(self, *arguments: Any) -> None:
        *tensors, options, stream = arguments
        with self.masks.using(), self._on_stream(tensors[0], stream):
            call = self._backward(TensorReader(self._ffi), tensors, options)
            with self._workspace(options, call[0].problem).serving():
                dispatch.run_backward(*call)

    def forward_workspace_size(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: Any, size: Any
    ) -> None:
        reader = TensorReader(self._ffi, metadata_only=True)
        with self.masks.using(), self._on_stream(q):
            problem = self._problem(reader, (q, k, v), options)
            target, logs, besides = reader.required(out, "out"), reader.optional(lse, "lse"), 0
            if logs is None and problem.spec.device != HOST:
                logs, besides = lse_at(NOWHERE // 2, problem), lse_bytes(problem)
            size[0] = besides + dispatch.forward_workspace(problem, target, logs)

    def backward_workspace_size(self, *arguments: Any) -> None:
        *tensors, options, size = arguments
        with self.masks.using(), self._on_stream(tensors[0]):
            call = self._backward(TensorReader(self._ffi, metadata_only=True), tensors, options)
            size[0] = dispatch.backward_workspace(*call)

    def supported(self, q: Tensor, k: Tensor, v: Tensor, options: Any) -> str:
        with self.masks.using(), self._on_stream(q):
            reader = TensorReader(self._ffi, metadata_only=True)
            return str(dispatch.explain(self._problem(reader, (q, k, v), options)))

    def warmup(self, q: Tensor, k: Tensor, v: Tensor, options: Any, backward: int) -> None:
        with self.masks.using(), self._on_stream(q):
            reader = TensorReader(self._ffi, metadata_only=True)
            dispatch.warmup(self._problem(reader, (q, k, v), options), bool(backward))

    def set_num_threads(self, threads: int) -> None:
        if threads < 0:
            raise ValueError(f"threads is {threads}, expected at least 1, or 0 for the default")
        set_num_threads(threads or None)

    def shutdown(self) -> None:
        """Free what can be made anew. All other calls have ended, but perhaps not their work on devices."""
        for device in used_devices():
            with device.on_stream(0):
                device.synchronize()
        self.masks.destroy_all()
        for device in used_devices():
            with device.on_stream(0):
                device.free_cached()

    def _problem(self, reader: TensorReader, inputs: tuple[Tensor, ...], options: Any) -> AttentionProblem:
        q, k, v = (reader.required(tensor, name) for tensor, name in zip(inputs, "qkv", strict=True))
        words = self._options.keywords(options, reader)
        cu = (words["cu_seqlens_q"], words["cu_seqlens_k"])
        longest = (words["max_seqlen_q"], words["max_seqlen_k"])
        problem = build.problem(q, k, v, cu, longest, Options.of(words))
        _require_mask_there(problem)
        return problem

    def _backward(self, reader: TensorReader, tensors: list[Tensor], options: Any) -> _Backward:
        """What `dispatch.run_backward` gets."""
        results = [reader.required(tensor, name) for tensor, name in zip(tensors[:5], _FORWARD, strict=True)]
        residuals = AttentionResiduals.from_arrays(*results, **self._options.keywords(options, reader))
        _require_mask_there(residuals.problem)
        dout, dlse = reader.required(tensors[5], "dout"), reader.optional(tensors[6], "dlse")
        names = AttentionGrads._fields
        grads = AttentionGrads(*map(reader.optional, tensors[7:], names))
        for name, operand in (("dbias", "bias"), ("dsinks", "sinks")):
            if getattr(grads, name) is not None and not getattr(options, operand):
                raise ValueError(f"{name} is given, but options.{operand} is NULL")
        wanted = tuple(name[1:] for name, array in zip(names, grads, strict=True) if array is not None)
        return residuals, dout, dlse, wanted, bool(options.flags & DETERMINISTIC), grads

    def _on_stream(self, q: Tensor, stream: Any = None) -> AbstractContextManager[Any]:
        if not q:
            raise ValueError("q is NULL, expected a tensor")
        return on_stream(device_of(q, "q"), 0 if stream is None else self._address(stream))

    def _workspace(self, options: Any, problem: AttentionProblem) -> Workspace:
        return Workspace.of(self._address(options.workspace), options.workspace_size, problem)

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))


def _require_mask_there(problem: AttentionProblem) -> None:
    """Python callers may pass masks of the host: copies are kept with these, on streams that are nobody's to know."""
    mask = problem.block_mask
    if mask is not None and mask.device != problem.spec.device:
        raise ValueError(f"block_mask is on {mask.device}, expected {problem.spec.device}, where q is")
