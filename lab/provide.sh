#!/bin/sh
# Install what is missing of the given Debian packages, and say so. A service that comes with one
# is not started: RUNLEVEL=1 is what invoke-rc.d takes for "not now".
set -eu
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "installing$missing with apt-get${sudo:+ (sudo asks for your password)}"
$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
