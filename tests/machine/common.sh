# Sourced by the scripts beside it. Standard output is for answers (an image's name), so progress goes to standard error.
# shellcheck shell=bash disable=SC2034

# Exit code of sysexits.h for "a service is unavailable": no engine, and no way to get one. Callers tell it from a failure.
readonly EX_UNAVAILABLE=69

# What must outlive a checkout (the engine's log) is kept outside of it.
state_directory="${XDG_CACHE_HOME:-$HOME/.cache}/volume-backup-sidecar"

say() { printf '%s\n' "$*" >&2; }

unavailable() {
    say "$@"
    exit "$EX_UNAVAILABLE"
}

# Whether this is Debian (or built on it) with the rights to install packages.
can_install() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

# apt_install PACKAGE...: installs quietly; shows apt's output only when it fails.
apt_install() {
    local output
    say "installing $* (apt-get)"
    for attempt in 1 2 3; do
        # Package lists of a bare machine are missing, those of an old one name files that are gone: refresh before judging.
        if [[ $attempt != 1 ]] || ! compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; then
            apt-get update -qq >/dev/null 2>&1 || true
        fi
        if output=$(DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=120 "$@" 2>&1 </dev/null); then
            return 0
        fi
    done
    say "$output"
    say "apt-get could not install: $*"
    return 1
}

# The classic builder needs no buildx; a client that has none must be told to use it, or it refuses to build.
choose_builder() {
    if [[ -z ${DOCKER_BUILDKIT:-} ]] && ! docker buildx version >/dev/null 2>&1; then
        export DOCKER_BUILDKIT=0
    fi
}

# build_image TAG CONTEXT [OPTION...]: builds quietly; shows the builder's output only when it fails. The host's network,
# because a machine's package index may be reachable from there alone.
build_image() {
    local tag=$1 context=$2 output
    shift 2
    choose_builder
    if ! output=$(docker build --network "${BUILD_NETWORK:-host}" --tag "$tag" "$@" "$context" 2>&1); then
        say "$output"
        say "building $tag failed; the builder's output is above."
        return 1
    fi
}
