#!/usr/bin/env bash
# A string such as 1e-4 does not survive jsonargparse's own dump: it is written without quotes and read as a number.
#
# Versions: jsonargparse 4.53.0, PyYAML 6.0.4.
#
# Expected: parse_string(dump(config)) is config. LightningCLI writes every run's config.yaml by `dump`, and one goes on
#   from it by `-c config.yaml`.
# Seen: for an option of type str, `--name 1e-4` is parsed, dumped as `name: 1e-4`, and refused when read again:
#   "Expected a <class 'str'>. Got value: 0.0001". The dumper follows YAML 1.1, in which 1e-4 is text (no dot), the
#   loader also takes it for a float. Strings that both take for something else (0x10, off, null, 2024) are quoted.
# Why it matters: runs are named after a learning rate or a weight (1e-4), and such a run can be trained but not
#   resumed or tested from the config that it wrote.
# Way out: quote the value in the file by hand (name: '1e-4'), or dump with a representer that quotes what the loader
#   would read as a number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jsonargparse==4.53.0" "PyYAML==6.0.4"
cd "$folder"
cat > roundtrip.py <<'PYTHON'
from jsonargparse import ArgumentError, ArgumentParser

parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--name", type=str)
seen = {}
for value in ("1e-4", "1e4", "12e03", "0x10", "off", "null", "2024"):
    text = parser.dump(parser.parse_args([f"--name={value}"]))
    try:
        seen[value] = parser.parse_string(text).name == value
    except ArgumentError as error:
        seen[value] = False
    print(f"{value:>6} is dumped as {text.strip()!r:>16} and {'comes back' if seen[value] else 'is refused'}")
lost = [value for value, back in seen.items() if not back]
assert lost == ["1e-4", "1e4", "12e03"], f"this has changed: lost are {lost}"
PYTHON
"$folder/venv/bin/python" roundtrip.py
