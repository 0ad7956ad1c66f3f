#!/bin/sh
# Tests the modules that use private parts of a library with the newest version of that library, above the upper bounds
# in setup.cfg too. A failure names what has to be repaired before the bound is raised.
#
#   tools/newest.sh VENV    VENV is the project's virtual environment; everything else is taken from it
#
# Exit 0 if the tests pass, or with a notice if no package index answers; 1 if they fail.
set -u

venv=$1
newest=.venv-newest
# Each is imported by one module only (import-linter checks that); devices are what node.links makes.
libraries="kubernetes-asyncio noiseprotocol pyroute2"
doors='ravenvpn\.(k8s\.access|crypto\.handshake|node\.links)\b'

"$venv/bin/python" -m venv --clear --without-pip "$newest" || exit 1
site=$("$newest/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# addsitedir also reads the .pth files there, the one of the editable installation among them.
echo "import site; site.addsitedir('$packages')" >"$site/project.pth"
pip() {
    "$venv/bin/python" -m pip --python "$newest/bin/python" --disable-pip-version-check --no-input --timeout 10 \
        --retries 1 "$@" 2>"$newest/pip.log"
}
# An upgrade alone would be content with what is installed if no index answers, so a download is tried first.
# pip then leaves the project's packages alone; its warnings about the bounds in setup.cfg are expected.
if ! pip download --quiet --no-deps --dest "$newest" noiseprotocol || ! pip install --quiet --upgrade $libraries; then
    cat "$newest/pip.log" >&2
    echo "NOT RUN: NO PACKAGE INDEX ANSWERS; the newest $libraries were not tested." >&2
    exit 0
fi
"$newest/bin/python" - $libraries <<'PYTHON'
import sys
from importlib.metadata import version

print("newest:", ", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))
PYTHON
tests=$(grep -rlE "$doors" tests --include='test_*.py') || {
    echo "no tests import $doors" >&2
    exit 1
}
timeout 90 "$newest/bin/python" -m pytest -q -m "not slow and not soak" $tests tests/node/test_devices.py || {
    echo "FAILED WITH THE NEWEST VERSIONS: keep the bounds in setup.cfg until the modules above work with them." >&2
    exit 1
}
