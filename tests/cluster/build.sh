#!/bin/bash
# Builds the Kubernetes programs of the tests into the cache, in the versions of versions.env.
# Prints nothing if all of them exist.
#
#   build.sh default        etcd, a control plane of one version with kubectl and kube-proxy, flanneld
#   build.sh all            the same, plus the oldest and the newest version
#
# The folder is RAVENVPN_KUBE, or ravenvpn/kube in the user's cache. Its build.log has the compilers' output.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in default | all) ;; *) sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;; esac
. "$here/versions.env"
folder=${RAVENVPN_KUBE:-${XDG_CACHE_HOME:-$HOME/.cache}/ravenvpn/kube}
mkdir -p "$folder"
log=$folder/build.log

# Print the builds, one "script version program…" a line. there() checks for the files of one build.
wanted() {
    echo "build-etcd.sh $ETCD_VERSION"
    echo "build-kube.sh $KUBE_VERSION kube-apiserver kubectl kube-controller-manager kube-scheduler kube-proxy"
    echo "build-flannel.sh $FLANNEL_VERSION"
    [ "$1" = default ] || {
        echo "build-kube.sh $KUBE_OLDEST kube-apiserver kubectl kube-controller-manager kube-proxy"
        echo "build-kube.sh $KUBE_NEWEST kube-apiserver kubectl"
    }
}
there() { # script version program…
    local script=$1 version=$2
    shift 2
    case $script in
        build-etcd.sh) [ -x "$folder/etcd-$version/etcd" ] ;;
        build-flannel.sh) [ -x "$folder/flannel-$version/flanneld" ] ;;
        build-kube.sh) for program; do [ -x "$folder/$version/$program" ] || return 1; done ;;
    esac
}
missing=()
while read -r line; do
    # shellcheck disable=SC2086
    there $line || missing+=("$line")
done < <(wanted "$1")
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v go >/dev/null; then
    echo "Kubernetes for the tests is not built yet, and there is no Go to build it with:" \
        "install Go 1.26 or newer (https://go.dev/dl)" >&2
    exit 1
fi
echo "==> Kubernetes for the tests: building ${#missing[@]} of $(wanted "$1" | wc -l) parts into $folder (up to 15 minutes, once)"
for line in "${missing[@]}"; do
    read -r script version programs <<<"$line"
    began=$SECONDS
    what=${script#build-}
    printf '    %s %s %s' "${what%.sh}" "$version" "${programs:+($programs) }"
    # shellcheck disable=SC2086
    if "$here/$script" "$version" "$folder" $programs >"$log" 2>&1; then
        echo "in $((SECONDS - began)) s"
    else
        echo "failed:"
        { grep -v '^go: downloading' "$log" || true; } | tail -n 12 | sed 's/^/    /'
        echo "    All of it is in $log. It needs $(go version), and to reach its module proxy ($(go env GOPROXY))."
        exit 1
    fi >&2
done
