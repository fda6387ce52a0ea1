#!/usr/bin/env bash
# compute-sanitizer over the guidance kernels: bad memory accesses, then races in shared memory. Needs a CUDA GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v compute-sanitizer >/dev/null || {
    echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit (often /usr/local/cuda/bin)" >&2
    exit 2
}
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=kernels/torch-ext:tests/kernels${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" tests/kernels/guidance_sanitize.py # compiles, so that the sanitizer sees launches alone
for tool in memcheck racecheck; do
    echo "== $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$PYTHON" tests/kernels/guidance_sanitize.py
done
