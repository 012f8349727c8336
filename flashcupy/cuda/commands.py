"""``flashcupy check`` and ``flashcupy compile``: loops over the cases and configurations of `flashcupy.cuda.matrix`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashcupy.cuda import device, matrix
from flashcupy.cuda.compile import KernelConfig, unit_of
from flashcupy.cuda.environment import show_log
from flashcupy.cuda.nvrtc import Usage, arch_for
from flashcupy.errors import KernelCompileError

SUCCESS, FAILURE, CANNOT_RUN = 0, 1, 2


def check() -> int:
    """Run every case on the first GPU and print a table; returns the exit status."""
    show_log()
    try:
        runtime = device.runtime()
        if runtime.count() == 0:
            return _cannot_run("check needs an NVIDIA GPU, and CuPy finds none: 'flashcupy info' tells why")
        gpu = runtime.device(0)
        properties = gpu.properties
    except (ImportError, RuntimeError) as error:
        return _cannot_run(_first_line(error))
    print(f"{properties.name}, {properties.arch}, {properties.compiler}, driver {properties.driver}")
    cases = matrix.check_cases(properties.compute_capability)
    width = max((len(case.name) for case in cases), default=0)
    failed = 0
    print(f"{'case':<{width}}  {'ms':>9}  verdict")
    for case in cases:
        start = time.perf_counter()
        verdict = _verdict(case.run, gpu)
        milliseconds = 1e3 * (time.perf_counter() - start)
        failed += verdict is not None
        print(f"{case.name:<{width}}  {milliseconds:9.1f}  {verdict or 'right'}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} cases are right; ms count compiling at first use")
    return FAILURE if failed else SUCCESS


def _verdict(run: Callable[[Any], str | None], gpu: device.Device) -> str | None:
    try:
        return run(gpu)
    except Exception as error:  # the table goes on: it shows which cases work
        return f"{type(error).__name__}: {_first_line(error)}"


def compile_ahead(archs: Sequence[str] | None, what: Literal["plain", "all"], jobs: int) -> int:
    """Compile what the cache lacks and print what each kernel uses; returns the exit status.

    `archs` None means those of the GPUs of this machine.
    """
    show_log()
    from flashcupy.cuda import cupy_device

    try:
        compiler = cupy_device.compiler_version()
        known = cupy_device.known_archs()
        targets = _present_archs() if archs is None else [_target(arch, known, compiler) for arch in archs]
    except (ImportError, RuntimeError, ValueError) as error:
        return _cannot_run(_first_line(error))
    if not targets:
        return _cannot_run("CuPy finds no GPU to compile for: name an architecture, as in --arch sm_90a")
    work = [(config, target) for target in targets for config in matrix.compile_configs(what, target)]
    rows = list(_compile_all(work, compiler, jobs))
    print(_table(rows))
    return FAILURE if any(row.error for row in rows) else SUCCESS


def _present_archs() -> list[str]:
    runtime = device.runtime()
    return sorted({runtime.device(ordinal).properties.arch for ordinal in range(runtime.count())})


def _target(arch: str, known: Sequence[int], compiler: str) -> str:
    """What GPUs of an architecture get their kernels for: sm_90 becomes sm_90a."""
    match = re.fullmatch(r"(sm|compute)_(\d+)a?", arch)
    if match is not None and int(match[2]) in known:
        own = arch if match[1] == "compute" else arch_for(divmod(int(match[2]), 10), known, compiler)
        if arch.removesuffix("a") == own.removesuffix("a") and len(arch) <= len(own):
            return own
    expected = ", ".join(f"sm_{number}" for number in known)
    raise ValueError(f"--arch {arch} is nothing that {compiler} compiles kernels for, expected of {expected}")


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    arch: str
    threads: int
    shared_bytes: int
    seconds: float | None = None  # None: the cache had it
    used: Usage | None = None  # where the compiler reported it
    error: str | None = None


def _compile_all(jobs_to_do: list[tuple[KernelConfig, str]], compiler: str, threads: int) -> Iterator[_Row]:
    """Compile on several threads, NVRTC releases the interpreter; rows come in the order asked for."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(_compile_one, config, arch, compiler) for config, arch in jobs_to_do]
        with _progress(len(futures)) as advance:
            for future in as_completed(futures):
                advance(future)
        yield from (future.result() for future in futures)
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C not all that is left


def _compile_one(config: KernelConfig, arch: str, compiler: str) -> _Row:
    from flashcupy.cuda import cupy_device

    unit = unit_of(config, arch, compiler)
    about = (config.name, arch, config.threads, config.shared_bytes)
    if unit.find() is not None:
        return _Row(*about)
    reports: list[Usage | None] = []

    def compile_unit(source: str, entry: str, include: Path) -> bytes:
        binary, used = cupy_device.nvrtc_compile(source, entry, arch, include)
        reports.append(used)
        return binary

    start = time.perf_counter()
    try:
        unit.make(compile_unit)
    except (KernelCompileError, OSError) as error:
        return _Row(*about, error=str(error))
    return _Row(*about, seconds=time.perf_counter() - start, used=reports[0])


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Future[_Row]], None]]:
    """Yield what to call for each finished row: a bar with tqdm, else a line."""
    try:
        from tqdm import tqdm
    except ImportError:
        done = 0

        def print_line(future: Future[_Row]) -> None:
            nonlocal done
            done += 1
            print(f"{done}/{total} {future.result().name}", file=sys.stderr, flush=True)

        yield print_line
    else:
        with tqdm(total=total, unit="kernel") as bar:
            yield lambda future: bar.update()


def _table(rows: Sequence[_Row]) -> str:
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{'kernel':<{width}}  arch         threads  registers  spilled  shared  seconds"]
    for row in rows:
        registers, spilled = (row.used.registers, row.used.spill_bytes) if row.used else ("-", "-")
        seconds = "failed" if row.error else "cached" if row.seconds is None else f"{row.seconds:.2f}"
        lines.append(
            f"{row.name:<{width}}  {row.arch:<11}  {row.threads:7}  {registers:>9}  {spilled:>7}  "
            f"{row.shared_bytes:6}  {seconds:>7}"
        )
    lines += [row.error for row in rows if row.error]
    compiled = sum(row.seconds is not None for row in rows)
    lines.append(f"{compiled} compiled, {sum(row.error is not None for row in rows)} failed, {len(rows)} in all")
    return "\n".join(lines)


def _cannot_run(why: str) -> int:
    print(f"flashcupy: {why}", file=sys.stderr)
    return CANNOT_RUN


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
