#!/usr/bin/env bash
# torch-fidelity 0.4.0 installs a package named `tests`, which hides the folder `tests` of a project that has no
# __init__.py in it.
#
# Versions: torch-fidelity 0.4.0 (its wheel alone, without dependencies); 0.3.0 is as one would expect.
#
# Expected: `pip install torch-fidelity` adds `torch_fidelity`, and a project's own `tests/helpers.py` can be imported
#   from the project's root, where it stands before site-packages on the path.
# Seen: 0.4.0 adds `tests`, too, with its authors' integration tests in it. A package with an __init__.py wins over a
#   folder without one, wherever both stand on the path. So `python -m tests.helpers` from the project's root says "No
#   module named tests.helpers", and what `import tests` gives is torch-fidelity's.
# Why it matters: shared helpers of tests, and benchmarks that are run as `python -m tests.benchmark`, break as soon as
#   the environment has the new version. The error names the project's own folder, and not the package that hides it.
# Way out: an __init__.py in the project's `tests`, which then wins by its place on the path, or torch-fidelity<0.4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/project/tests"
echo 'print("the project")' > "$folder/project/tests/helpers.py"
cd "$folder/project"

runs() { "$folder/$1/bin/python" -m tests.helpers 2>&1 || true; }

for version in 0.3.0 0.4.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --no-deps "torch-fidelity==$version"
    names=$(cat "$folder/$version"/lib/python3*/site-packages/torch_fidelity-*.dist-info/top_level.txt)
    echo "$version installs: ${names//$'\n'/, }"
    echo "$version, python -m tests.helpers: $(runs "$version")"
done
touch tests/__init__.py
echo "0.4.0, with tests/__init__.py: $(runs 0.4.0)"
rm tests/__init__.py

[ "$(runs 0.3.0)" = "the project" ] || { echo "this has changed: 0.3.0 hides the project's tests, too"; exit 1; }
[[ "$(runs 0.4.0)" == *"No module named tests.helpers" ]] || { echo "this has changed: 0.4.0 hides no tests"; exit 1; }
touch tests/__init__.py
[ "$(runs 0.4.0)" = "the project" ] || { echo "this has changed: an __init__.py is no way out"; exit 1; }
