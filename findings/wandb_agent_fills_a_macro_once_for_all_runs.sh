#!/usr/bin/env bash
# In a sweep's command, ${envvar:WANDB_RUN_ID} is not the run's id: every run of an agent gets the same wrong text.
#
# Version: wandb 0.31.0, Python 3.11.
#
# Expected: a sweep's `command` may hold ${envvar:NAME}, and each run's process has WANDB_RUN_ID in its environment. So
#   `--out=runs/${envvar:WANDB_RUN_ID}` should give every run of `wandb agent` a folder of its own.
# Seen: the agent fills the macros before it sets WANDB_RUN_ID for the run, and leaves an unset name as it is; and it
#   writes the result into its own list, so that the macro is gone for the runs after it. All get runs/WANDB_RUN_ID.
#   Inside the process the variable is right.
# Why it matters: the runs of a sweep share one folder, and overwrite or resume each other's checkpoints.
# Way out: read os.environ["WANDB_RUN_ID"] in the program, which is the run's own, as the lines that this prints show.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "wandb==0.31.0"
cd "$folder"
cat > program.py <<'PYTHON'
import os
import sys

print(f"process of {os.environ['WANDB_RUN_ID']}: {sys.argv[1]}", flush=True)
PYTHON
env -u WANDB_RUN_ID PATH="$folder/venv/bin:$PATH" python - <<'PYTHON' | tee seen.txt
import queue

import wandb
from wandb.wandb_agent import Agent

# The agent of `wandb agent`, told to start two runs as W&B's server tells it, without the server.
agent = Agent(api=None, queue=queue.Queue(), sweep_id="sweep")
agent._sweep_command = ["${env}", "${interpreter}", "${program}", "--out=runs/${envvar:WANDB_RUN_ID}"]
print("wandb", wandb.__version__, flush=True)
for run in ("first", "second"):
    agent._command_run({"run_id": run, "program": "program.py", "args": {}})
    agent._run_processes[run].wait()
PYTHON
for run in first second; do
    grep --quiet "process of $run: --out=runs/WANDB_RUN_ID" seen.txt || { echo "$run: its id is filled in by now"; exit 1; }
done
