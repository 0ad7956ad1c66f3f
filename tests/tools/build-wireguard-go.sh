#!/bin/sh
# Builds wireguard-go, the independent implementation for interoperability tests and benchmarks, and prints the path of
# the program. The cache is outside of the clone, with a folder for each version. Once built, no network is needed.
# WIREGUARD_GO_VERSION=latest (or any version of the Go module) builds another.
set -eu

MODULE=golang.zx2c4.com/wireguard
PINNED=v0.0.0-20260522210424-ecfc5a8d5446
version=${WIREGUARD_GO_VERSION:-$PINNED}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ravenvpn/wireguard-go

need_go() {
    command -v go >/dev/null || {
        echo "wireguard-go $version is not built yet, and Go is not installed:" \
            "install Go (Debian: apt-get install golang-go; or https://go.dev/dl)" >&2
        exit 1
    }
}

if [ "$version" = latest ]; then
    need_go
    version=$(go list -m -f '{{.Version}}' "$MODULE@latest")
fi
program=$cache/$version/wireguard-go
if [ ! -x "$program" ]; then
    need_go
    mkdir -p "$cache/$version"
    # Built in a scratch folder and moved: two builds at the same time do not use each other's unfinished file.
    scratch=$(mktemp -d "$cache/$version/build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    echo "building $MODULE@$version into $cache" >&2
    GOBIN=$scratch GOFLAGS= CGO_ENABLED=0 nice -n 10 go install -trimpath "$MODULE@$version" >&2 || {
        echo "building wireguard-go $version failed; it needs $(go version) to reach its module proxy" \
            "(GOPROXY=$(go env GOPROXY))" >&2
        exit 1
    }
    mv "$scratch/wireguard" "$program"
fi
echo "$program"
