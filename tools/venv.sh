#!/bin/sh
# Makes the virtual environment in the folder $1 with ravenvpn (editable) and its development tools. Does nothing if it
# exists and was made from the same setup.cfg, pyproject.toml, Rust sources and Python.
set -eu

venv=$1
python=$(tools/python.sh)

sources() {
    cat setup.cfg pyproject.toml
    [ ! -f setup.py ] || cat setup.py
    # The native body is built by the same installation, so a change in it requires a new one.
    [ ! -d rust ] || find rust -name target -prune -o -type f \( -name '*.rs' -o -name 'Cargo.*' \) -print | LC_ALL=C sort | xargs cat
    "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
}
stamp=$(sources | sha256sum | cut -d ' ' -f 1)
[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0

version=$("$python" -c 'import platform; print(platform.python_version())')
echo "==> Virtual environment $venv: Python $version ($python)"

# Debian has two parts of Python in separate packages: pip for venv, and the headers that C extensions need.
needed=
"$python" -c 'import ensurepip, venv' 2>/dev/null || needed="python3-venv"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -e "$headers/Python.h" ] || needed="$needed python3-dev"
if [ -n "$needed" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "==> Debian packages: $needed"
        tools/apt.sh $needed || {
            echo "    $python lacks $needed, and apt-get could not install it." >&2
            exit 1
        }
    else
        echo "    $python lacks $needed. As root: apt-get install $needed" >&2
        exit 1
    fi
fi

have=$("$venv/bin/python" -c 'import platform; print(platform.python_version())' 2>/dev/null || true)
if [ "$have" != "$version" ]; then
    "$python" -m venv --clear "$venv"
fi
compiling=
! command -v cargo >/dev/null 2>&1 || compiling=", compiling the native data plane"
echo "==> Installing ravenvpn and its development tools$compiling (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]' || {
    echo "    pip could not install ravenvpn into $venv; the reason is above. It needs a package index" \
        "(pip config list) and a C compiler." >&2
    exit 1
}
if "$venv/bin/python" -c 'import ravenvpn.dataplane._native' 2>/dev/null; then
    echo "    The data plane is the native one."
else
    echo "    The data plane is the Python one; the native one needs a Rust compiler (https://rustup.rs)."
fi
echo "$stamp" >"$venv/.stamp"
