"""Check that a wheel holds every file of flashcupy/ and kernels_cu/ that git tracks, and no test."""

import subprocess
import sys
import zipfile

names = set(zipfile.ZipFile(sys.argv[1]).namelist())
tracked = subprocess.run(
    ["git", "ls-files", "flashcupy", "kernels_cu"], capture_output=True, text=True, check=True
).stdout
expected = {name if name.startswith("flashcupy/") else f"flashcupy/{name}" for name in tracked.splitlines()}

if missing := expected - names:
    sys.exit(f"the wheel lacks {sorted(missing)}")
if not any(name.startswith("flashcupy/kernels_cu/") for name in names):
    sys.exit("the wheel has no flashcupy/kernels_cu/")
if stray := {name for name in names if name.startswith(("tests/", "bench/", "examples/"))}:
    sys.exit(f"the wheel holds files that are not the package's: {sorted(stray)}")
print(f"wheel: {len(names)} files, {len(expected)} of flashcupy and kernels_cu as expected")
