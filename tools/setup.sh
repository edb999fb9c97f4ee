#!/bin/sh
# Installs the Debian packages that are missing. usage: tools/setup.sh build|test
set -eu

build="build-essential meson ninja-build pkg-config node-llhttp libuv1-dev libssl-dev
libcurl4-openssl-dev libjansson-dev libsqlite3-dev libpcre2-dev libutf8proc-dev libyaml-dev
zlib1g-dev libxxhash-dev libedit-dev ca-certificates python3 python3-pip"
test="libcmocka-dev clang-14 clang-format-14 libclang-rt-14-dev python3-venv python3-jinja2
curl nginx-light openssl prometheus"

want=$build
if [ "${1:-build}" = test ]; then
    want="$build $test"
    # a newer Node.js than Debian's may be there already
    command -v node >/dev/null 2>&1 || want="$want nodejs"
    command -v npm >/dev/null 2>&1 || want="$want npm"
fi

missing=
for package in $want; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    echo "these Debian packages are missing, and there is neither root nor sudo to install them:" >&2
    echo " $missing" >&2
    exit 1
fi
echo "installing:$missing"
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
