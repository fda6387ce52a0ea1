#!/usr/bin/env bash
# Everything a CUDA device can prove, in two commands that fit into a quarter of an hour of a bare machine:
#   scripts/gpu.sh first                      does it train, how fast, the GPU tests, the parts of a step
#   scripts/gpu.sh second --source CIFAR100   a teacher and a guided student on real images, then the ladder
# Options are those of benchmarks/gpu_stages.py, which says what each stage does and what it leaves in OUT.
#   PYTHON  an interpreter with torch and the dependencies: .venv's where it is there, else python3
#   OUT     folder of the results; default benchmarks/results/gpu
#   WHEELS  a folder of wheels for what that interpreter lacks, for a machine without network; made where there is one by
#           pip download --no-deps -d .whl --only-binary :all: --python-version 3.12 pydantic pydantic-core PyYAML ...
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 2
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
case " $* " in
    *" --tiny "* | *" --help "* | *" -h "*) ;;
    *)
        "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
            echo "torch sees no CUDA device" >&2
            exit 2
        }
        ;;
esac
exec "$PYTHON" benchmarks/gpu_stages.py "$@" --out "${OUT:-benchmarks/results/gpu}"
