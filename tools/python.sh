#!/bin/sh
# Prints the path of a Python that ravenvpn can use. If there is none, prints the reason to stderr and fails.
#
#   tools/python.sh           the first of python3, python3.13 … python3.11 and pyenv's that is 3.11 or newer
#   tools/python.sh 3.13      one of exactly that version
#   PYTHON=… tools/python.sh  that one, or an error; a bare name like python3.13 may also be one of pyenv's
#
# Each candidate is run, because a name on PATH may be a version manager's shim without a Python behind it.
set -u

wanted=${1:-}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

fits() {
    found=$(version_of "$1") || return 1
    if [ -n "$wanted" ]; then
        [ "$found" = "$wanted" ]
    else
        [ "${found%%.*}" -gt 3 ] || { [ "${found%%.*}" -eq 3 ] && [ "${found#*.}" -ge 11 ]; }
    fi
}

if [ -n "${PYTHON:-}" ]; then
    if fits "$PYTHON"; then
        command -v "$PYTHON"
        exit 0
    fi
    case $PYTHON in
    python3.[0-9]*)
        for candidate in "${PYENV_ROOT:-$HOME/.pyenv}/versions/${PYTHON#python}".*/bin/python; do
            if fits "$candidate"; then
                echo "$candidate"
                exit 0
            fi
        done
        ;;
    esac
    echo "PYTHON=$PYTHON: $(version_of "$PYTHON" || echo 'it does not run'); ravenvpn needs Python ${wanted:-3.11 or newer}" >&2
    exit 1
fi

if [ -z "$wanted" ]; then
    names="python3 python3.13 python3.12 python3.11"
else
    names="python$wanted python3"
fi
older=
for name in $names; do
    for candidate in "$name" "/usr/bin/$name" "/usr/local/bin/$name"; do
        if fits "$candidate"; then
            command -v "$candidate"
            exit 0
        fi
        [ -n "$older" ] || older=$(version_of "$candidate")
    done
done
# pyenv has its versions side by side; only the selected ones are on PATH.
for candidate in $(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python 2>/dev/null | sort -rV); do
    if fits "$candidate"; then
        echo "$candidate"
        exit 0
    fi
done
[ -z "$older" ] || echo "python3 here is $older." >&2
echo "No Python ${wanted:-3.11 or newer} found. Install one (Debian 12: apt-get install python3) or name it: make PYTHON=/path/to/python3" >&2
exit 1
