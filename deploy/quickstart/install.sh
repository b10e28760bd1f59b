#!/usr/bin/env bash
# Creates the virtual environment $1 and installs the pinned dependencies and this package into it.
# Says what is missing before it starts anything that takes long.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$1
needed_gb=12

fail() {
  printf 'install: %s\n' "$@" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in "${PYTHON3:-}" python3 python3.12 python3.11; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed; found $(python3 --version 2>/dev/null || echo none)." \
    "On Debian 12 or Ubuntu 24.04: sudo apt install python3 python3-venv; on Ubuntu 22.04: python3.11-venv." \
    "Elsewhere: set PYTHON3=/path/to/python3.12."
}

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "Linux is needed: the engine has no build for $(uname -s)."
  local glibc free_gb
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
  [ "$(printf '%s\n' 2.34 "${glibc:-0}" | sort -V | head -n 1)" = 2.34 ] ||
    fail "glibc 2.34 or newer is needed (Debian 12, Ubuntu 22.04); found ${glibc:-none}."
  free_gb=$(df --output=avail --block-size=1G . | tail -n 1)
  [ "$free_gb" -ge "$needed_gb" ] || fail "$needed_gb GB of disk are needed here; $free_gb GB are free."
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  check_machine
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python lacks the venv module. On Debian or Ubuntu: sudo apt install ${python##*/}-venv."
  echo "creating $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
if [ ! -x "$venv/bin/uv" ]; then
  "${pip[@]}" --quiet uv || echo "uv is not to be had; pip does the same, in about four times the time"
fi

install() {
  if [ -x "$venv/bin/uv" ] && "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"; then
    return
  fi
  "${pip[@]}" "$@" || fail "pip could not install $*; its message is above. Is a package index within reach?"
}

echo "installing the pinned dependencies: about 9 GB, a minute or two; nothing is done for what is there already"
# Of every process of a deployment, compiling what it imports would take longer than all else of its start.
UV_COMPILE_BYTECODE=1 install --requirement requirements.lock
echo "installing tactic, and generating its gRPC stubs"
install --no-deps --editable .
