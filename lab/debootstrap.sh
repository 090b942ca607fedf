#!/bin/sh
# Put a Debian release into a folder: lab/debootstrap.sh RELEASE FOLDER [PACKAGE,PACKAGE...]
set -eu
release=$1 folder=$2
cd "$(dirname "$0")/.."
lab/provide.sh debootstrap debian-archive-keyring
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

# apt knows the mirror that this machine can reach. (Ubuntu's apt knows no Debian mirror.)
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' \
    'Label: Debian' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}
echo "building $folder from $mirror${sudo:+ (sudo asks for your password)}"
mkdir -p "$(dirname "$folder")"
$sudo rm -rf --one-file-system "$folder"
# In a mount namespace of its own: debootstrap mounts /proc in the folder.
$sudo unshare -m debootstrap --variant=minbase ${3:+"--include=$3"} \
    "$release" "$folder" "$mirror" >"$folder.log" 2>&1 || { tail -n 20 "$folder.log"; exit 1; }
