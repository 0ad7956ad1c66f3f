#!/bin/bash
# Builds etcd of one version from the Go module proxy into a cache. Debian's 3.4 does not suffice:
# it lacks RequestWatchProgress, without which streaming lists fail on Kubernetes 1.34 and even plain watches on 1.37.
#
#   build-etcd.sh VERSION OUTDIR        e.g. build-etcd.sh v3.6.16 ~/.cache/ravenvpn/kube
#
# Output: OUTDIR/etcd-VERSION/etcd. An existing file is kept. Prints that path.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
version=v${1#v}; mkdir -p "$2/etcd-$version"; out=$(cd "$2/etcd-$version" && pwd)
exec 9>"$out/.lock"; flock 9
[ ! -x "$out/etcd" ] || { echo "$out/etcd"; exit 0; }
command -v go >/dev/null || { echo "build-etcd: $version is not built yet, and there is no Go to build it with (https://go.dev/dl; 1.24 or newer)" >&2; exit 1; }
export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOFLAGS=
mod=$out/.module; mkdir -p "$mod"; cd "$mod"
# etcd's go.mod has replace directives to folders, so "go install" refuses it; another module as the root builds it
facts=$(go mod download -json "go.etcd.io/etcd/server/v3@$version") || { echo "build-etcd: no $version to be had: $facts" >&2; exit 1; }
upstream=$(sed -n 's/.*"GoMod": "\(.*\)".*/\1/p' <<<"$facts")
{ echo "module etcd-build"; grep -E '^go [0-9]' "$upstream"; echo "require go.etcd.io/etcd/server/v3 $version"; } >go.mod
printf '//go:build tools\npackage tools\nimport _ "go.etcd.io/etcd/server/v3"\n' >tools.go
nice -n 10 go build -mod=mod -trimpath -buildvcs=false -ldflags "-s -w" -o "$out/.etcd.part" go.etcd.io/etcd/server/v3 >&2
mv "$out/.etcd.part" "$out/etcd"
echo "$out/etcd"
