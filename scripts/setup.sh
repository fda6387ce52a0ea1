#!/usr/bin/env bash
# Makes .venv with fastlg, its development tools and FFCV. Called by the Makefile; safe to run again.
#   LATEST  not empty: the newest versions that fit, not those of constraints.txt
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PACKAGES=(pkg-config libturbojpeg0-dev libopencv-dev)

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "fastlg needs Python 3.11 to 3.13; $("$PYTHON" --version) is $PYTHON. Use make PYTHON=python3.12" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
echo "setting up .venv (a few minutes the first time)"
pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }

had() { .venv/bin/python -m pip index versions "$1" 2>/dev/null | grep '^Available versions:' || true; }
without_what_is_not_had() {
    local pin versions
    [ -n "$(had pip)" ] || return 0 # no index answers: pip's own error says so below
    while read -r pin; do
        [[ $pin == *==* ]] || continue
        versions=$(had "${pin%%==*}")
        if [[ "${versions#*:}," == *" ${pin#*==},"* ]]; then
            echo "$pin"
        else
            echo "constraints.txt: $pin cannot be had here; going on without it" >&2
        fi
    done <constraints.txt
}
# With the versions last proven; an index may not have one of them, and pip may be held to others.
proven=(--constraint constraints.txt)
if [ -n "${LATEST:-}" ]; then
    proven=()
    pip_install --upgrade --upgrade-strategy eager -e '.[dev]'
elif ! pip_install "${proven[@]}" -e '.[dev]' 2>.venv/proven.log; then
    without_what_is_not_had >.venv/constraints.txt
    proven=(--constraint .venv/constraints.txt)
    if ! pip_install "${proven[@]}" -e '.[dev]' 2>.venv/proven.log; then
        echo "constraints.txt cannot be met here ($(grep -m1 '^ERROR' .venv/proven.log | cut -c1-160)); taking what fits"
        proven=()
        pip_install -e '.[dev]'
    fi
fi

# FFCV is compiled from source against Debian's libraries.
has_packages() { pkg-config --exists libturbojpeg opencv4 2>/dev/null; }
if ! .venv/bin/python -c 'import ffcv' 2>/dev/null; then
    if ! has_packages && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing FFCV's Debian packages: ${PACKAGES[*]}"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "${PACKAGES[@]}"; } >/dev/null 2>&1 || true
    fi
    if ! has_packages; then
        echo "FFCV is left out; to add it: apt-get install ${PACKAGES[*]}, then .venv/bin/pip install 'fastlg[ffcv]'"
    elif ! pip_install "${proven[@]}" -e '.[ffcv]' >.venv/ffcv.log 2>&1; then
        echo "FFCV is left out: its build failed, see .venv/ffcv.log; to try again: .venv/bin/pip install 'fastlg[ffcv]'"
    fi
fi
rm -f .venv/.ready*
touch ".venv/.ready${LATEST:+-latest}"
