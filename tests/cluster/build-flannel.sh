#!/bin/bash
# Builds flanneld of one version from the Go module proxy, for tests beside a real CNI's VXLAN.
#
#   build-flannel.sh VERSION OUTDIR        e.g. build-flannel.sh v0.28.10 ~/.cache/ravenvpn/kube
#
# Output: OUTDIR/flannel-VERSION/flanneld. An existing file is kept. Prints that path.
# Two backends are left out: tencentvpc (the proxy does not serve its SDK) and udp (it needs cgo).
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
version=v${1#v}; mkdir -p "$2/flannel-$version"; out=$(cd "$2/flannel-$version" && pwd)
exec 9>"$out/.lock"; flock 9
[ ! -x "$out/flanneld" ] || { echo "$out/flanneld"; exit 0; }
command -v go >/dev/null || { echo "build-flannel: $version is not built yet, and there is no Go to build it with (https://go.dev/dl; 1.24 or newer)" >&2; exit 1; }
export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOFLAGS=
mod=$out/.module; rm -rf "$mod"; mkdir -p "$mod"; cd "$mod"
facts=$(go mod download -json "github.com/flannel-io/flannel@$version") || { echo "build-flannel: no $version to be had: $facts" >&2; exit 1; }
fact() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" <<<"$facts"; }
sed -E '\#"github.com/flannel-io/flannel/pkg/backend/(tencentvpc|udp)"#d' "$(fact Dir)/main.go" >main.go
{ echo "module flannel-build"; grep -E '^go [0-9]' "$(fact GoMod)"; echo "require github.com/flannel-io/flannel $version"; } >go.mod
nice -n 10 go build -mod=mod -trimpath -buildvcs=false \
  -ldflags "-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$version" -o "$out/.flanneld.part" . >&2
mv "$out/.flanneld.part" "$out/flanneld"
echo "$out/flanneld"
