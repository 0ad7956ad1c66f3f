#!/bin/sh
# Checks the programs that demo, tests and benchmarks call. Root on Debian: installs the missing ones; otherwise prints
# what is missing. No package tool is called if nothing is missing. With CI=true a missing program is an error.
set -u

PATH=$PATH:/usr/sbin:/sbin

missing_commands=
missing_packages=
want() { # command, its package
    command -v "$1" >/dev/null 2>&1 && return
    missing_commands="$missing_commands $1"
    missing_packages="$missing_packages $2"
}
want wg wireguard-tools
want wg-quick wireguard-tools
want nft nftables
want ip iproute2
want tc iproute2
want iperf3 iperf3
want tcpdump tcpdump
want conntrack conntrack
want ethtool ethtool
want iptables-nft iptables
want iptables-legacy iptables
want ping iputils-ping
want ps procps
want curl curl
want dnsmasq dnsmasq-base
want openssl openssl
want gcc "gcc libc6-dev"
want valgrind valgrind
want unshare util-linux
want nsenter util-linux
[ -n "$missing_commands" ] || exit 0

give_up() {
    echo "    missing:$missing_commands" >&2
    echo "    $1" >&2
    [ "${CI:-}" != true ] || exit 1
    echo "    Going on without them; tests that need them are skipped, other targets report them." >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 ||
    give_up "This is not Debian; install the packages that contain them (on Debian:$missing_packages)."
[ "$(id -u)" = 0 ] || give_up "Only root can install them: apt-get install$missing_packages"

packages=$(printf '%s\n' $missing_packages | sort -u | tr '\n' ' ')
echo "==> Debian packages: $packages"
tools/apt.sh $packages || give_up "apt-get could not install them (its last lines are above)."
