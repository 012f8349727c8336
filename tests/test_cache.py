"""Compiled kernels in memory and on disk: one compilation, whatever happens to the files."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from fake_device import PROPERTIES, FakeConfig, FakeDevice

from flashcupy import info
from flashcupy.cuda import cache, compile, sources
from flashcupy.errors import KernelCompileError

CONFIG = FakeConfig()


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Kernel sources of the test's own."""
    folder = tmp_path / "kernels_cu"
    (folder / "tile").mkdir(parents=True)
    (folder / "fwd.cu").write_text("#include <tile/softmax.cuh>")
    (folder / "tile" / "softmax.cuh").write_text("// rows")
    monkeypatch.setattr(sources, "kernels_dir", lambda: folder)
    monkeypatch.setattr(compile, "kernels_dir", lambda: folder)
    return folder


@pytest.fixture
def root(monkeypatch, tmp_path, kernels):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(folder))
    monkeypatch.setattr(cache, "_private", cache._PrivateFolder())
    monkeypatch.setattr(compile, "_slots", {})
    return folder


def load_in_new_process(config=CONFIG, **device):
    """What a process that starts now would do: nothing is remembered, another device object."""
    fresh = FakeDevice(**device)
    return fresh, compile.load_kernel(fresh, config)


def files(root, pattern="*.bin"):
    return sorted(root.rglob(pattern))


def test_second_process_takes_the_binary_from_disk(root):
    first, kernel = load_in_new_process()
    assert first.compiled == ["fwd_fake"]
    second, again = load_in_new_process()
    assert second.compiled == []
    assert second.loaded == [kernel.path]
    assert again == replace(kernel, handle=again.handle)
    assert (kernel.name, kernel.threads, kernel.shared_bytes) == ("fwd_fake", 128, 1024)
    assert kernel.handle == (kernel.path, 1024)
    assert files(root) == [kernel.path]
    assert cache.usage() == (1, kernel.path.stat().st_size)


def test_one_process_loads_once_per_device(root):
    devices = FakeDevice(), FakeDevice("cuda:1")
    kernels = [compile.load_kernel(device, CONFIG) for device in devices * 2]
    assert kernels[0] is kernels[2]
    assert kernels[1] is kernels[3]
    assert [len(device.loaded) for device in devices] == [1, 1]
    assert [len(device.compiled) for device in devices] == [1, 0]


def test_what_is_ready_is_told_without_work(root):
    device = FakeDevice()
    assert compile.loaded_kernel(device, CONFIG) is None
    assert not compile.is_compiled(device, CONFIG)
    kernel = compile.load_kernel(device, CONFIG)
    assert compile.loaded_kernel(device, CONFIG) is kernel
    assert compile.is_compiled(FakeDevice(), CONFIG)
    assert compile.loaded_kernel(FakeDevice(), CONFIG) is None


@pytest.mark.parametrize(
    "other",
    [
        {"config": FakeConfig(name="fwd_other")},
        {"config": FakeConfig(body="// other")},
        {"properties": replace(PROPERTIES, arch="sm_80")},
        {"properties": replace(PROPERTIES, compiler="fake 1.1")},
    ],
    ids=["name", "unit", "arch", "compiler"],
)
def test_everything_compiled_in_is_in_the_key(root, other):
    load_in_new_process()
    device, _ = load_in_new_process(**other)
    assert len(device.compiled) == 1


def test_line_information_is_in_the_key(root, monkeypatch):
    load_in_new_process()
    monkeypatch.setenv("FLASHCUPY_LINEINFO", "1")
    device, _ = load_in_new_process()
    assert len(device.compiled) == 1


def test_fields_of_a_key_do_not_run_into_each_other():
    keys = {
        sources.fields_digest(fields) for fields in ({"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"b"})
    }
    assert len(keys) == 4


@pytest.mark.parametrize("edit", ["change", "add", "rename"])
def test_an_edited_header_recompiles_in_new_and_running_processes(root, kernels, edit):
    running, _ = load_in_new_process()
    header = kernels / "tile" / "softmax.cuh"
    if edit == "change":
        header.write_text("// columns")
    elif edit == "add":
        (kernels / "tile" / "new.cuh").write_text("")
    else:
        header.rename(kernels / "softmax.cuh")
    fresh, _ = load_in_new_process()
    assert len(fresh.compiled) == 1
    compile.load_kernel(running, FakeConfig(name="fwd_second"))
    assert len(files(root)) == 3


def test_documentation_and_hidden_files_are_no_sources(root, kernels):
    load_in_new_process()
    (kernels / "README.md").write_text("text")
    (kernels / ".fwd.cu.swp").write_text("text")
    device, _ = load_in_new_process()
    assert device.compiled == []


def test_sources_are_read_again_only_when_they_change(kernels, monkeypatch):
    digest = sources.sources_digest()
    monkeypatch.setattr(sources, "fields_digest", lambda fields: pytest.fail("read again"))
    assert sources.sources_digest() == digest


def test_the_kernels_are_found():
    assert list(sources.kernels_dir().glob("*.cu"))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_file_is_compiled_anew(root, damage):
    _, kernel = load_in_new_process()
    good = kernel.path.read_bytes()
    kernel.path.write_bytes({"truncated": good[:-1], "foreign": b"text", "empty": b""}[damage])
    device, again = load_in_new_process()
    assert len(device.compiled) == 1
    assert again.path.read_bytes() == good
    assert again.digest == kernel.digest
    assert load_in_new_process()[0].compiled == []


def test_a_file_that_does_not_load_is_compiled_anew_once(root):
    _, kernel = load_in_new_process()
    # A whole file under its own digest, which the device refuses all the same.
    cache.store("fwd_fake", kernel.path.parent.name.rpartition("-")[2], b"of another architecture")
    kernel.path.unlink()
    device, again = load_in_new_process()
    assert device.compiled == ["fwd_fake"]
    assert again.digest == kernel.digest
    assert files(root) == [kernel.path], "the other one would be found again"


def test_what_the_driver_refuses_freshly_compiled_is_an_error(root):
    device = FakeDevice(broken=True)
    with pytest.raises(KernelCompileError, match=r"fake 1\.0 compiles it, but driver fake 2\.0 does not load"):
        compile.load_kernel(device, CONFIG)
    assert device.compiled == ["fwd_fake"]


def test_a_unit_that_does_not_compile_is_kept_and_named(root):
    config = FakeConfig(body="syntax error")
    with pytest.raises(KernelCompileError, match="line 2: syntax error") as caught:
        compile.load_kernel(FakeDevice(), config)
    error = caught.value
    assert (error.config, error.options) == ("fwd_fake", ("-fake",))
    assert Path(error.source_path).read_text() == config.translation_unit()
    assert Path(error.source_path).is_relative_to(root)
    assert str(error.source_path) in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_failure_is_remembered_until_a_source_changes(root, kernels):
    device, config = FakeDevice(), FakeConfig(body="syntax error")
    for _ in range(3):
        with pytest.raises(KernelCompileError):
            compile.load_kernel(device, config)
    assert len(device.compiled) == 1
    (kernels / "fwd.cu").write_text("// mended")
    with pytest.raises(KernelCompileError):
        compile.load_kernel(device, config)
    assert len(device.compiled) == 2


def test_threads_that_race_compile_once(root):
    device = FakeDevice(seconds=0.1)
    start, results = threading.Barrier(8), []

    def ask():
        start.wait()
        results.append(compile.load_kernel(device, CONFIG))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.compiled) == len(device.loaded) == 1
    assert len(results) == 8
    assert len({id(kernel) for kernel in results}) == 1


def test_different_kernels_compile_side_by_side(root):
    """Each compilation waits for the other to have started, so one after the other would never end."""
    meet = threading.Barrier(2, timeout=20)

    class Meeting(FakeDevice):
        def compile(self, source, entry, include):
            meet.wait()
            return super().compile(source, entry, include)

    device = Meeting()
    configs = [FakeConfig(name="fwd_a"), FakeConfig(name="fwd_b")]
    threads = [threading.Thread(target=compile.load_kernel, args=(device, config)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(compile.loaded_kernel(device, config) for config in configs)


RACER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from fake_device import FakeConfig, FakeDevice
from flashcupy.cuda import compile, sources
compile.kernels_dir = sources.kernels_dir = lambda: Path({kernels!r})
print("ready", flush=True)
sys.stdin.readline()
device = FakeDevice(seconds=0.3)
kernel = compile.load_kernel(device, FakeConfig())
print(len(device.compiled), kernel.digest, flush=True)
"""


def test_two_processes_that_race_both_succeed(root, kernels):
    code = RACER.format(tests=str(Path(__file__).parent), kernels=str(kernels))
    command = [sys.executable, "-W", "error", "-c", code]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, first_digest), (second, second_digest) = (output.split() for output, _ in outputs)
    assert (first, second) == ("1", "1"), "they did not race"
    assert first_digest == second_digest
    device, kernel = load_in_new_process()
    assert device.compiled == []
    assert kernel.digest == first_digest
    assert [path.name for path in root.rglob("*") if path.is_file()] == [kernel.path.name]


def refuse_under(monkeypatch, root, number):
    """Every file below `root` fails to be written; half of it may be there already."""
    plain = Path.write_bytes

    def write_bytes(path, content):
        if path.is_relative_to(root):
            plain(path, content[: len(content) // 2])
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_no_file_is_replaced_by_a_private_one_with_one_warning(root, monkeypatch, number):
    refuse_under(monkeypatch, root, number)
    with pytest.warns(RuntimeWarning, match=f"cannot be kept in {root}.*{os.strerror(number)}.*CACHE_DIR"):
        _, kernel = load_in_new_process()
    load_in_new_process(FakeConfig(name="fwd_second"))  # a second warning would be an error
    assert not kernel.path.is_relative_to(root)
    assert kernel.path.read_bytes().startswith(b"binary of fwd_fake")
    assert kernel.path.parents[1].stat().st_mode & 0o077 == 0
    assert [path for path in files(root, "*") if path.is_file()] == [], "half a file was left behind"
    assert load_in_new_process()[0].compiled == [], "the private folder is looked into as well"


def test_a_failing_rename_leaves_nothing_behind(root, monkeypatch):
    replace_file = os.replace

    def refuse(source, target):
        if Path(target).is_relative_to(root):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        load_in_new_process()
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_a_cache_path_that_is_a_file(root):
    root.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        device, kernel = load_in_new_process()
    assert kernel.path.exists()
    assert device.loaded == [kernel.path]
    assert root.read_text() == "in the way"
    assert cache.usage() == (0, 0)


@pytest.mark.parametrize("chosen", [None, "~/kernels"])
def test_a_user_without_a_home_folder(root, monkeypatch, tmp_path, chosen):
    def refuse():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", refuse)
    monkeypatch.setattr(Path, "expanduser", lambda path: refuse() if "~" in str(path) else path)
    for name in ("FLASHCUPY_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("FLASHCUPY_CACHE_DIR", chosen)
    with pytest.warns(RuntimeWarning, match=r"cannot be kept \(the user's home folder is not known: .*CACHE_DIR"):
        _, kernel = load_in_new_process()
    assert kernel.path.parents[1].stat().st_mode & 0o077 == 0
    assert load_in_new_process()[0].compiled == []
    assert cache.usage() == (0, 0)
    assert info.collect_info()["cache"]["dir"].startswith("none: the user's home folder")
    with pytest.raises(KernelCompileError):
        compile.load_kernel(FakeDevice(), FakeConfig(body="syntax error"))


def test_a_read_only_cache_that_has_the_kernel_serves_without_a_warning(root, monkeypatch):
    load_in_new_process()
    refuse_under(monkeypatch, root, errno.EROFS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device, _ = load_in_new_process()
    assert device.compiled == []


def test_a_unit_that_does_not_compile_is_kept_elsewhere_if_need_be(root, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse_under(monkeypatch, root, errno.EROFS)
    config = FakeConfig(body="syntax error")
    with pytest.raises(KernelCompileError) as caught:
        compile.load_kernel(FakeDevice(), config)
    assert Path(caught.value.source_path).read_text() == config.translation_unit()


def test_the_private_folder_goes_with_the_process(tmp_path):
    code = "from flashcupy.cuda import cache; import warnings; warnings.simplefilter('ignore'); " + (
        "print(cache.store('fwd', 'key', b'content').path.parents[1])"
    )
    (tmp_path / "file").write_text("")
    environ = {**os.environ, "FLASHCUPY_CACHE_DIR": str(tmp_path / "file")}
    output = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert "flashcupy-" in output.stdout
    assert not Path(output.stdout.strip()).exists()


def test_long_names_fit_the_file_system(root):
    config = FakeConfig(name="fwd_" + "x" * 300)
    _, kernel = load_in_new_process(config)
    assert kernel.name == config.name
    assert load_in_new_process(config)[0].compiled == []


def test_dump_keeps_unit_and_binary_of_cached_kernels_too(root, monkeypatch, tmp_path):
    load_in_new_process()
    monkeypatch.setenv("FLASHCUPY_DUMP", str(tmp_path / "dump"))
    _, kernel = load_in_new_process()
    assert (tmp_path / "dump" / "fwd_fake.cu").read_text() == CONFIG.translation_unit()
    assert (tmp_path / "dump" / "fwd_fake.ptx").read_bytes() == kernel.path.read_bytes()


def test_debug_logs_compiling_and_loading(root, caplog):
    with caplog.at_level(logging.DEBUG, "flashcupy"):
        load_in_new_process()
        load_in_new_process()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["compiled", "loaded", "loaded"]
    assert all(line.endswith(" ms") for line in lines)
