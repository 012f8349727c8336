"""Check that a wheel holds every file of flashcupy/, kernels_cu/ and bindings/ that git tracks, and no test."""

import subprocess
import sys
import zipfile

names = set(zipfile.ZipFile(sys.argv[1]).namelist())
tracked = subprocess.run(
    ["git", "ls-files", "flashcupy", "kernels_cu", "bindings"], capture_output=True, text=True, check=True
).stdout
expected = {name if name.startswith("flashcupy/") else f"flashcupy/{name}" for name in tracked.splitlines()}

if missing := expected - names:
    sys.exit(f"the wheel lacks {sorted(missing)}")
for folder in ("flashcupy/kernels_cu/", "flashcupy/bindings/"):
    if not any(name.startswith(folder) for name in names):
        sys.exit(f"the wheel has no {folder}")
if stray := {name for name in names if name.startswith(("tests/", "bench/", "examples/"))}:
    sys.exit(f"the wheel holds files that are not the package's: {sorted(stray)}")
print(f"wheel: {len(names)} files, {len(expected)} tracked ones as expected")
