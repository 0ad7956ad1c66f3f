#!/bin/bash
# Builds Kubernetes programs of one version from the Go module proxy, without cloning or docker.
#
#   build-kube.sh VERSION OUTDIR [PROGRAM...]
#
# e.g. build-kube.sh v1.34.4 ~/.cache/ravenvpn/kube kube-apiserver kubectl
# Programs: kube-apiserver (the default), kube-controller-manager, kube-scheduler,
# kube-proxy, kubectl. Output: OUTDIR/VERSION/PROGRAM. An existing file is kept.
# A lock serialises concurrent callers.
# Prints OUTDIR/VERSION.
#
# Needs Go (1.26 for Kubernetes 1.36 and later) and python3. KUBE_BUILD_JOBS limits
# the number of compilers at once.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
version=v${1#v}
[[ $version =~ ^v1\.([0-9]+)\.[0-9]+$ ]] || { echo "build-kube: not a version: $version" >&2; exit 2; }
minor=${BASH_REMATCH[1]}
mkdir -p "$2/$version"; out=$(cd "$2/$version" && pwd); shift 2
[ $# -gt 0 ] || set -- kube-apiserver
say() { echo "build-kube: $*" >&2; }

exec 9>"$out/.lock"; flock 9
wanted=()
for program in "$@"; do [ -x "$out/$program" ] || wanted+=("$program"); done
[ ${#wanted[@]} -gt 0 ] || { echo "$out"; exit 0; }
command -v go >/dev/null || { say "$version is not built yet, and there is no Go to build it with (https://go.dev/dl; 1.26 or newer)"; exit 1; }
export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOFLAGS=
jobs=${KUBE_BUILD_JOBS:+-p $KUBE_BUILD_JOBS}

# A module that replaces the root of the Kubernetes repository:
# k8s.io/kubernetes refers to its own parts (k8s.io/api, k8s.io/apiserver, ...) by folder;
# each of them is also published as v0.MINOR.PATCH of the same release. The other
# replace directives (old releases pin every dependency by one) are copied unchanged.
mod=$out/.module; rm -rf "$mod"; mkdir -p "$mod"; cd "$mod"
facts=$(go mod download -json "k8s.io/kubernetes@$version") || { say "no k8s.io/kubernetes $version to be had: $facts"; exit 1; }
fact() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" <<<"$facts"; }
source=$(fact Dir)
python3 - "$(fact GoMod)" "$version" >go.mod <<'PY'
import re, sys
text, version = open(sys.argv[1]).read(), sys.argv[2]
# pins that a newer compiler rejects or crashes on, and the nearest that work
bumps = {("github.com/modern-go/reflect2", "v1.0.1"): "v1.0.2", ("github.com/json-iterator/go", "v1.1.11"): "v1.1.12"}
# parts that are not served at the release itself, and the nearest release that is
unserved = {("k8s.io/kube-controller-manager", "v1.22.17"): "v1.22.5"}
print("module kube-build\n")
print(*re.findall(r"^go \S+$|^godebug .+$", text, re.M), sep="\n")
print(f"\nrequire k8s.io/kubernetes {version}\n\nreplace (")
for path, there in re.findall(r"^\s+(\S+) => (\S+(?: v\S+)?)$", text, re.M):
    if there.startswith("./staging/"):
        there = f"{path} v0.{unserved.get((path, version), version)[3:]}"
    else:
        name, pinned = there.split()
        there = f"{name} {bumps.get((path, pinned), pinned)}"
    print(f"  {path} => {there}")
print(")")
PY
imports() { printf '//go:build tools\n\npackage tools\n\n'; printf 'import _ "%s"\n' "$@"; }
imports "${wanted[@]/#/k8s.io/kubernetes/cmd/}" >tools.go

# Releases that did not check in their OpenAPI definitions (1.22):
# without them kube-apiserver does not compile. openapi-gen generates them into a package
# of this module, as the release build did; kube-apiserver's few files are copied to import it.
declare -A package=()
for program in "${wanted[@]}"; do package[$program]=k8s.io/kubernetes/cmd/$program; done
if [ -n "${package[kube-apiserver]:-}" ] && [ ! -e "$source/pkg/generated/openapi/zz_generated.openapi.go" ]; then
  say "making the OpenAPI definitions of $version"
  imports "${wanted[@]/#/k8s.io/kubernetes/cmd/}" k8s.io/kube-openapi/cmd/openapi-gen >tools.go
  go build -mod=mod -buildvcs=false -o openapi-gen k8s.io/kube-openapi/cmd/openapi-gen
  tagged=$(go list -mod=mod -deps -f '{{if .Module}}{{.ImportPath}} {{.Dir}}{{end}}' k8s.io/kubernetes/cmd/kube-apiserver |
    while read -r path folder; do
      case $path in k8s.io/kube-openapi/*|k8s.io/kubernetes/*|*/clientauthentication/*) continue;; esac
      if grep -lqs '+k8s:openapi-gen=' "$folder"/*.go; then echo "$path"; fi
    done | paste -sd,)
  : >header.txt
  ./openapi-gen -i "$tagged" -p kube-build/openapi -O zz_generated.openapi -h header.txt -o made -r violations.txt
  mv made/kube-build/openapi . && rm -r made
  mkdir -p kube-apiserver/app
  cp "$source"/cmd/kube-apiserver/*.go kube-apiserver/; cp "$source"/cmd/kube-apiserver/app/*.go kube-apiserver/app/
  chmod -R u+w kube-apiserver; rm -f kube-apiserver/*_test.go kube-apiserver/app/*_test.go
  sed -i 's#"k8s.io/kubernetes/cmd/kube-apiserver/app"#"kube-build/kube-apiserver/app"#
          s#"k8s.io/kubernetes/pkg/generated/openapi"#"kube-build/openapi"#' kube-apiserver/*.go kube-apiserver/app/*.go
  package[kube-apiserver]=./kube-apiserver
fi

flags="-s -w" # plus the version, which "kubectl version" and clients of /version read
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags+=" -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
done
for program in "${wanted[@]}"; do
  begin=$SECONDS
  say "building $program $version (minutes, on a cold cache)"
  # shellcheck disable=SC2086
  nice -n 10 go build -mod=mod -trimpath -buildvcs=false $jobs -ldflags "$flags" \
    -o "$out/.$program.part" "${package[$program]}" >&2
  mv "$out/.$program.part" "$out/$program"
  say "$program: $((SECONDS - begin)) s, $(du -m "$out/$program" | cut -f1) MiB"
done
echo "$out"
