#!/bin/sh
# Installs Debian packages without questions and without output unless it fails. Package lists are fetched only if the
# first try fails.
set -u

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1; }
install "$@" && exit 0
apt-get update >>"$log" 2>&1
install "$@" && exit 0
tail -n 15 "$log" >&2
exit 1
