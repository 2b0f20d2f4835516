#!/usr/bin/env bash
# The third-party QUIC peers of tests/interop, installed once and kept between runs:
#   mqttv5   broker and client, Rust and quinn (crates.io mqttv5-cli), into $MQTTQUIC_LAB_CACHE
#   quiche   npm @matrixai/quic, beside the relay that uses it
# With MQTTQUIC_LAB_CI=1 a peer that cannot be installed is a failure, otherwise only a note: its tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin" # rustup puts cargo there, which not every shell knows

cache="${MQTTQUIC_LAB_CACHE:-$HOME/.cache/mqttquic_lab}"
version=$(cat tests/interop/mqttv5.version)
mqttv5="$cache/mqttv5-$version"
relay=tests/interop/quiche_relay
missing=0

lack() {
    echo "peers: $1" >&2
    missing=1
}

has() { command -v "$1" >/dev/null 2>&1; }

# at_least 1.89 1.95.0: whether the second version is the first or newer
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

apt_install() {
    local sudo=""
    if [ "$(id -u)" != 0 ]; then sudo="sudo"; fi
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

build_mqttv5() {
    # Debian's own compiler is older than the 1.89 that mqttv5-cli asks for, so that apt cannot help here.
    if ! has cargo || ! has rustc || ! at_least 1.89 "$(rustc --version | cut -d ' ' -f 2)"; then
        lack "mqttv5 $version needs cargo and rustc 1.89 or newer, found: $(rustc --version 2>/dev/null || echo none)"
        return
    fi
    # ring, its TLS library's cryptography, compiles C
    if ! has cc; then apt_install gcc libc6-dev; fi
    local began=$SECONDS
    echo "peers: building mqttv5 $version, which takes some minutes, once"
    # What the tests need is a build that is over soon, not a fast broker. First with the versions its authors tested;
    # a mirror may not have all of them yet, then the newest ones it has that fit.
    local install=(nice -n 19 cargo install mqttv5-cli --version "=$version" --no-default-features --quiet)
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_STRIP=symbols
    if "${install[@]}" --root "$mqttv5" --locked || "${install[@]}" --root "$mqttv5"; then
        echo "peers: mqttv5 $version built in $((SECONDS - began)) s, kept in $mqttv5"
    else
        lack "mqttv5 $version could not be built"
    fi
}

install_quiche() {
    if ! has node || ! has npm; then apt_install nodejs npm || true; fi
    if ! has node || ! has npm || ! at_least v20 "$(node --version)"; then
        lack "the quiche relay needs npm and Node.js 20 or newer, found: $(node --version 2>/dev/null || echo none)"
        return
    fi
    # Not `npm ci`: the package's binaries for other systems were never published in this version, and it insists.
    if ! npm install --prefix "$relay" --no-save --ignore-scripts --no-audit --no-fund --loglevel=error; then
        lack "the quiche relay's packages could not be installed"
    fi
}

if [ ! -x "$mqttv5/bin/mqttv5" ]; then build_mqttv5; fi
# npm notes there what it has installed
if [ ! "$relay/node_modules/.package-lock.json" -nt "$relay/package-lock.json" ]; then install_quiche; fi

if [ "$missing" = 1 ] && [ "${MQTTQUIC_LAB_CI:-}" = 1 ]; then exit 1; fi
