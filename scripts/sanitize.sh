#!/usr/bin/env bash
# compute-sanitizer over the guidance kernels: bad memory accesses, then races in shared memory. Needs a CUDA GPU.
#   SANITIZER  the tool; taken from PATH or /usr/local/cuda/bin where it is not named
# Exit status 2 where the tool is missing: what was not checked does not pass.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
SANITIZER=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
command -v "$SANITIZER" >/dev/null || {
    echo "$SANITIZER is not there, so nothing was checked; it comes with the CUDA toolkit, name it in SANITIZER" >&2
    exit 2
}
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=kernels/torch-ext:tests/kernels/guidance${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" tests/kernels/guidance/guidance_sanitize.py # compiles, so that the sanitizer sees launches alone
for tool in memcheck racecheck; do
    echo "== $tool"
    "$SANITIZER" --tool "$tool" --error-exitcode 1 "$PYTHON" tests/kernels/guidance/guidance_sanitize.py
done
