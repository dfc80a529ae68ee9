#!/usr/bin/env bash
# Set-up, once for each version of pyproject.toml: a virtual environment in .venv with this package and what it needs.
#
#   scripts/setup.sh            what training and talking to a model need
#   scripts/setup.sh --tests    also what the tests need: Python packages, and Chromium from the system's packages
set -euo pipefail
cd "$(dirname "$0")/.."

extras="all"
[ "${1:-}" = "--tests" ] && extras="all,test"
python="${PYTHON:-python3}"

"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"glm5 needs Python 3.11 or newer; this is {sys.version.split()[0]}. Set PYTHON=/path/to/a/newer/python3.")
PY

stamp=".venv/.ready-${extras//,/-}-$(cksum <pyproject.toml | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
    echo "setting up .venv (a few minutes the first time)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # torch first and alone: the exact pin decides, not whatever another package would pull in.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep -o 'torch==[0-9.]*' pyproject.toml | head -n 1)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    touch "$stamp"
fi

if [ "$extras" = "all,test" ] && ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
    if ! command -v apt-get >/dev/null; then
        echo "The report's tests open it in Chromium: install it with your system's package manager." >&2
        exit 1
    fi
    echo "installing Chromium for the report's tests"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null
fi
