"""What the device can do at most: matmul rates, bandwidths of memory and L2, the cost of a launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bench.gpu.device import Gpu
from bench.gpu.measure import reason

SAMPLES = 10
WARM_SECONDS = 0.5  # an idle device has the clock of one, and takes a while to raise it
MATMUL_SIZES = {"bfloat16": 8192, "float16": 8192, "tf32": 8192, "float32": 4096, "float64": 4096}
LAUNCHES = 1000
L2_BYTES = 16 << 20
L2_REPEATS = 64

# Every block reads the whole buffer, a power of two long, from a place of its own on; .cg keeps the loads out of L1.
L2_READER = r"""
extern "C" __global__ void read_l2(const float4* data, float* sink, int count, int repeats) {
    float sum = 0;
    for (int r = 0; r < repeats; r++) {
        int start = blockIdx.x * 977 + r * 131;
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            float4 x = __ldcg(data + ((start + i) & (count - 1)));
            sum += x.x + x.y + x.z + x.w;
        }
    }
    if (sum == 12345.678f) sink[0] = sum;
}
"""


@dataclass(frozen=True)
class Limit:
    """One figure: the median of the samples, or why there is none; `state` is what the device was like."""

    name: str
    unit: str
    samples: tuple[float, ...] = ()
    missing: str = ""
    state: dict[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Return the median."""
        return statistics.median(self.samples)


def measured(name: str, unit: str, sample: Callable[[], float]) -> Limit:
    """Take the samples after one warm-up; an exception is the reason that there are none."""
    try:
        sample()
        return Limit(name, unit, tuple(sample() for _ in range(SAMPLES)))
    except Exception as error:
        return Limit(name, unit, missing=reason(error))


def limits(gpu: Gpu) -> list[Limit]:
    """Measure everything."""
    return [
        *(matmul(gpu, dtype) for dtype in MATMUL_SIZES),
        measured("copy in device memory, bytes read and written", "GB/s", _sampler(copy, gpu)),
        measured("read from L2", "GB/s", _sampler(read_l2, gpu)),
        measured("launch of an empty kernel, host", "us", _sampler(launch_host, gpu)),
        measured("launch of an empty kernel until it is done", "us", _sampler(launch_round_trip, gpu)),
        measured("empty kernel after another, device", "us", _sampler(launch_device, gpu)),
    ]


def matmul_rates(gpu: Gpu, names: set[str]) -> dict[str, float]:
    """Return the measured matmul rates in TFLOP/s, of those that can be measured."""
    found = {name: matmul(gpu, name) for name in MATMUL_SIZES if name in names}
    return {name: limit.value for name, limit in found.items() if not limit.missing}


def matmul(gpu: Gpu, name: str) -> Limit:
    """Measure one square product of random matrices, by torch or else by CuPy."""
    size = MATMUL_SIZES[name]
    flops = 2.0 * size**3

    def prepared() -> Callable[[], float]:
        product = _torch_product(name, size) if _has_torch() else _cupy_product(gpu.xp, name, size)
        _warm_up(gpu, product)
        return lambda: flops / gpu.sample(product) * 1e-12

    return replace(measured(f"matmul {name} {size}", "TFLOP/s", _once(prepared)), state=gpu.state())


def _warm_up(gpu: Gpu, call: Callable[[], Any]) -> None:
    end = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < end:
        call()
        gpu.synchronize()


def _once(prepare: Callable[[], Callable[[], float]]) -> Callable[[], float]:
    kept: list[Callable[[], float]] = []

    def sample() -> float:
        if not kept:
            kept.append(prepare())
        return kept[0]()

    return sample


def _sampler(prepare: Callable[[Gpu], Callable[[], float]], gpu: Gpu) -> Callable[[], float]:
    return _once(lambda: prepare(gpu))


def _has_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _torch_product(name: str, size: int) -> Callable[[], Any]:
    import torch

    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))

    def product() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return product


def _cupy_product(xp: Any, name: str, size: int) -> Callable[[], Any]:
    if name not in ("float16", "float32", "float64"):
        raise NotImplementedError(f"without torch there is no {name} product")
    a, b = (xp.random.standard_normal((size, size)).astype(name) for _ in range(2))
    return lambda: a @ b


def copy(gpu: Gpu) -> Callable[[], float]:
    """Prepare a copy of 4 GiB."""
    source = gpu.xp.ones(1 << 30, "float32")
    target = gpu.xp.empty_like(source)

    def call() -> None:
        gpu.xp.copyto(target, source)

    return lambda: 2 * source.nbytes / gpu.sample(call) * 1e-9


def read_l2(gpu: Gpu) -> Callable[[], float]:
    """Prepare reads of a buffer that fits into L2, by all multiprocessors, many times over."""
    xp = gpu.xp
    kernel = xp.RawKernel(L2_READER, "read_l2")
    blocks = 2 * xp.cuda.Device().attributes["MultiProcessorCount"]
    data, sink = xp.ones(L2_BYTES // 4, "float32"), xp.zeros(1, "float32")
    count = L2_BYTES // 16
    repeats = max(1, L2_REPEATS // blocks + 1)

    def call() -> None:
        kernel((blocks,), (1024,), (data, sink, count, repeats))

    return lambda: blocks * repeats * L2_BYTES / gpu.sample(call) * 1e-9


def _empty_kernel(gpu: Gpu) -> Callable[[], None]:
    kernel = gpu.xp.RawKernel('extern "C" __global__ void empty() {}', "empty")
    return lambda: kernel((1,), (32,), ())


def launch_host(gpu: Gpu) -> Callable[[], float]:
    """Prepare launches in a row, timed on the host: CuPy's own cost."""
    launch = _empty_kernel(gpu)

    def sample() -> float:
        gpu.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            launch()
        elapsed = time.perf_counter() - start
        gpu.synchronize()
        return elapsed / LAUNCHES * 1e6

    return sample


def launch_round_trip(gpu: Gpu) -> Callable[[], float]:
    """Prepare one launch and the wait for it."""
    launch = _empty_kernel(gpu)

    def sample() -> float:
        start = time.perf_counter()
        launch()
        gpu.synchronize()
        return (time.perf_counter() - start) * 1e6

    return sample


def launch_device(gpu: Gpu) -> Callable[[], float]:
    """Prepare launches out of a graph, timed on the device."""
    launch = _empty_kernel(gpu)

    def many() -> None:
        for _ in range(LAUNCHES):
            launch()

    replay = gpu.capture(many)
    return lambda: gpu.sample(replay) / LAUNCHES * 1e6


def table(found: list[Limit]) -> str:
    """Lay out the figures in Markdown."""
    lines = ["| what | median | min..max | unit |", "| --- | ---: | ---: | --- |"]
    for limit in found:
        if limit.missing:
            lines.append(f"| {limit.name} | | | {limit.missing} |")
        else:
            spread = f"{min(limit.samples):.4g}..{max(limit.samples):.4g}"
            lines.append(f"| {limit.name} | {limit.value:.4g} | {spread} | {limit.unit} |")
    return "\n".join(lines)
