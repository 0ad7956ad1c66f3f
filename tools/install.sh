#!/bin/sh
# Installs or removes ravenvpn on this host, under PREFIX, with its systemd service (make install, make uninstall).
#   PREFIX=/opt/ravenvpn  BINDIR=/usr/local/bin  UNITDIR=/etc/systemd/system  SYSUSERSDIR=/etc/sysusers.d  ETC=/etc/ravenvpn
# May be run again for an upgrade. Keys, state and configuration are never changed.
set -eu
cd "$(dirname "$0")/.."

: "${PREFIX:=/opt/ravenvpn}" "${BINDIR:=/usr/local/bin}" "${UNITDIR:=/etc/systemd/system}"
: "${SYSUSERSDIR:=/etc/sysusers.d}" "${ETC:=/etc/ravenvpn}"

say() { printf '==> %s\n' "$*"; }

# systemctl is called only if systemd runs this machine and the unit is in its folder.
systemd() {
    if [ -d /run/systemd/system ] && [ "$UNITDIR" = /etc/systemd/system ]; then "$@"; fi
}

install_() {
    python=$(PYTHON="${PYTHON:-}" tools/python.sh)
    case $("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')/ in
    /root/* | /home/*)
        echo "    $python is in a home directory, which the service cannot read (ProtectHome=yes)." >&2
        echo "    Use a Python of the system: make install PYTHON=/usr/bin/python3" >&2
        ;;
    esac
    if [ ! -x "$PREFIX/bin/python" ]; then
        say "virtual environment in $PREFIX"
        "$python" -m venv "$PREFIX"
    fi
    say "ravenvpn and its dependencies, into $PREFIX"
    "$PREFIX/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade .
    mkdir -p "$BINDIR" "$UNITDIR" "$SYSUSERSDIR"
    for program in raven-vpn ravenvpn-tun; do
        ln -sf "$PREFIX/bin/$program" "$BINDIR/$program"
    done
    say "service, group and directories"
    sed "s|/opt/ravenvpn/|$PREFIX/|" systemd/ravenvpn.service >"$UNITDIR/ravenvpn.service"
    cp systemd/ravenvpn.sysusers "$SYSUSERSDIR/ravenvpn.conf"
    install -d -m 0755 "$ETC" "$ETC/world"
    if [ "$SYSUSERSDIR" = /etc/sysusers.d ]; then
        if command -v systemd-sysusers >/dev/null; then systemd-sysusers ravenvpn.conf
        elif ! getent group ravenvpn >/dev/null; then groupadd --system ravenvpn; fi
    fi
    systemd systemctl daemon-reload
    "$PREFIX/bin/raven-vpn" --version
    cat <<EOF
Next: put the manifests of all nodes into $ETC/world (raven-vpn manifest prints this node's),
then: systemctl enable --now ravenvpn
EOF
}

uninstall() {
    systemd systemctl disable --now ravenvpn || true
    if [ -x "$PREFIX/bin/raven-vpn" ] && [ "$(id -u)" = 0 ]; then
        say "routes, rules and devices of the agent"
        "$PREFIX/bin/raven-vpn" cleanup || true
    fi
    say "$PREFIX, its links and its service"
    rm -f "$UNITDIR/ravenvpn.service" "$SYSUSERSDIR/ravenvpn.conf"
    for program in raven-vpn ravenvpn-tun; do
        if [ "$(readlink "$BINDIR/$program" || true)" = "$PREFIX/bin/$program" ]; then rm -f "$BINDIR/$program"; fi
    done
    # Only a virtual environment is removed as a whole: PREFIX=/usr must not delete the system.
    if [ -f "$PREFIX/pyvenv.cfg" ]; then rm -rf "$PREFIX"; fi
    systemd systemctl daemon-reload
    echo "Left in place: $ETC (configuration) and /var/lib/ravenvpn (the private key). Remove them by hand if they are not needed."
}

case ${1:-} in
    install) install_ ;;
    uninstall) uninstall ;;
    *) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
