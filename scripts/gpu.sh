#!/usr/bin/env bash
# Everything a CUDA device can prove, in one command: tests, compute-sanitizer, benchmarks. Rows go to OUT (a folder).
# PYTHON names an interpreter with the dependencies; nothing is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-.venv/bin/python} OUT=${OUT:-benchmarks/results}
export PYTHONPATH=$PWD:$PWD/kernels/torch-ext${PYTHONPATH:+:$PYTHONPATH}
device=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())') || {
    echo "torch sees no CUDA device" >&2
    exit 2
}
failed=0
"$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests || failed=1
bash scripts/sanitize.sh || failed=1
for name in guidance augment; do
    "$PYTHON" "benchmarks/$name.py" --device cuda --json "$OUT/$name-$device.json" || failed=1
done
exit $failed
