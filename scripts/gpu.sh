#!/usr/bin/env bash
# Everything a CUDA device can prove, in one command: tests, compute-sanitizer, benchmarks. Rows go to OUT (a folder).
#   PYTHON  an interpreter with the dependencies
#   WHEELS  a folder of wheels to add to it first, for a machine without network:
#           pip download --dest .whl --only-binary :all: --python-version 3.12 pydantic PyYAML safetensors hypothesis scipy
#   ONLY    some of: tests sanitize bench, where time is short
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
export PYTHON=${PYTHON:-.venv/bin/python} OUT=${OUT:-benchmarks/results} ONLY=${ONLY:-tests sanitize bench}
export PYTHONPATH=$PWD:$PWD/kernels/torch-ext${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl || exit 2
fi
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "torch sees no CUDA device" >&2
    exit 2
}
failed=0
for part in $ONLY; do
    case $part in
        tests) "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests || failed=1 ;;
        sanitize) bash scripts/sanitize.sh || failed=1 ;;
        bench) "$PYTHON" benchmarks/run.py --out "$OUT" || failed=1 ;;
        *) echo "ONLY: $part is none of tests, sanitize, bench" >&2; exit 2 ;;
    esac
done
exit $failed
