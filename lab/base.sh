#!/bin/sh
# Build what lab/test_install.py installs the program on: lab/base.sh FOLDER
#
# `FOLDER/debian.tar` is a bare Debian 12, the base of a container. `FOLDER/root` is the same with
# systemd, cron, supervisord and the packages that the program needs, for systemd-nspawn.
# `FOLDER/store` is where podman's images can be mounted.
set -eu
folder=$1
cd "$(dirname "$0")/.."
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
mkdir -p "$folder/store"
lab/debootstrap.sh bookworm "$folder/root"
$sudo rm -rf "$folder/root/var/cache/apt/archives"/*.deb
$sudo tar -C "$folder/root" -cf "$folder/debian.tar" .
# Nothing that comes with a package is started (RUNLEVEL), and what is mounted or left over ends
# with the namespaces.
# shellcheck disable=SC2016
$sudo unshare -m -p -f --mount-proc --kill-child sh -euc '
    cp /etc/resolv.conf "$0/etc/resolv.conf"
    chroot "$0" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 sh -euc "
        apt-get update -qq
        apt-get install -qq -y --no-install-recommends systemd-sysv procps cron supervisor make \
            python3-pika python3-urllib3 python3-openstacksdk
        apt-get clean"' "$folder/root" >"$folder/log" 2>&1 || { tail -n 20 "$folder/log"; exit 1; }
