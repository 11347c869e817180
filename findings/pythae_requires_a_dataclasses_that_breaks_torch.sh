#!/usr/bin/env bash
# pythae asks for the backport of dataclasses; installed by --target it takes the place of Python's own, and torch fails.
#
# Versions: pythae 0.1.2 with dataclasses 0.6, Python 3.11 (and later ones), torch 2.14.1.
#
# Expected: a requirement that Python has had built in since 3.7 is skipped, or does no harm.
# Seen: pythae requires dataclasses>=0.6 on every Python. dataclasses 0.8 says that it is for Python 3.6 alone, so pip
#   passes over it and takes 0.6, which says nothing. In a virtual environment it lies behind the standard library and is
#   never imported. In a folder on PYTHONPATH (pip install --target, as for jobs of a cluster or a layer beside a shared
#   installation) it comes first. Its code reads a private name of `typing` that is gone, so every dataclass fails once
#   typing is imported: `import torch` ends in an AttributeError that names neither pythae nor the backport.
# Why it matters: one compares with pythae beside an installation that one must not change, and torch looks broken.
# Way out: pip install --no-deps pythae, and what it imports (cloudpickle, imageio, pydantic, torch), or delete
#   dataclasses.py from the folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/pythae" "pythae==0.1.2"
"$folder/venv/bin/python" - "$folder/pythae" <<'PYTHON'
import sys
from importlib.metadata import distributions

(pythae,) = distributions(name="pythae", path=[sys.argv[1]])
wanted = [line for line in pythae.requires if line.startswith("dataclasses")]
print(f"pythae {pythae.version} requires {wanted}")
assert wanted and ";" not in wanted[0], "no requirement of the backport, or for old Pythons alone, by now"
PYTHON
"$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/backport" "dataclasses>=0.6" 2>/dev/null
ls "$folder/backport" | grep dist-info
"$folder/venv/bin/pip" install --quiet "torch==2.14.1"
"$folder/venv/bin/python" -c "import torch; print('torch alone is imported:', torch.__version__)" 2>/dev/null
said=$(PYTHONPATH="$folder/backport" "$folder/venv/bin/python" -c "import torch" 2>&1 | tail -n 1) || true
echo "with the backport on PYTHONPATH: $said"
grep --quiet "_ClassVar" <<< "$said" || { echo "it is imported by now, or fails in another way"; exit 1; }
