#!/usr/bin/env bash
# Set-up, once for each version of pyproject.toml: a virtual environment in .venv with this package and what it needs.
#
#   scripts/setup.sh            what training and talking to a model need; of the system's packages bubblewrap, in
#                               which the code that a model writes is run
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

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
[ -x /usr/bin/python3 ] || missing+=(python3)  # what root's sandboxes run when root's own Python is in root's home
if [ "$extras" = "all,test" ] && ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
    missing+=(chromium fonts-liberation)  # the report's tests open it in a browser
fi
if [ "${#missing[@]}" -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "Install with your system's package manager: ${missing[*]}" >&2
        exit 1
    fi
    echo "installing from the system's packages: ${missing[*]}"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
