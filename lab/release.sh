#!/bin/sh
# Build a folder with another Debian release's RabbitMQ, python3, python3-pika and python3-urllib3.
#
#     lab/release.sh trixie .brokers/trixie
#     .brokers/trixie/run /usr/bin/python3 --version
#     LAB_BROKER=.brokers/trixie/bin python -m lab.demo
#
# `run` runs a command with the release's /usr in place of this machine's, and everything else as it
# is: /tmp, /etc, /proc, 127.0.0.1. It becomes the command (same process id), and its mount is seen
# by nobody else and ends with it, so that the folder can be removed at any time. `bin` has what
# lab/broker.py runs.
set -eu
release=$1 folder=$2
cd "$(dirname "$0")/.."
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
lab/debootstrap.sh "$release" "$folder/root" rabbitmq-server,python3-pika,python3-urllib3
$sudo rm -rf "$folder/root/var/cache/apt/archives" "$folder/root/var/lib/apt/lists"

mkdir -p "$folder/bin"
cat >"$folder/run" <<'EOF'
#!/bin/sh
[ "$(id -u)" = 0 ] || root=-r
exec unshare -m ${root-} /bin/sh -ec 'mount --bind "$0" /usr; exec "$@"' \
    "$(dirname "$(realpath "$0")")/root/usr" "$@"
EOF
for command in rabbitmq/bin/rabbitmq-server rabbitmq/bin/rabbitmqctl erlang/bin/erl_call \
    erlang/bin/epmd; do
    printf '#!/bin/sh\nexec "$(dirname "$0")/../run" /usr/lib/%s "$@"\n' "$command" \
        >"$folder/bin/${command##*/}"
done
chmod +x "$folder/run" "$folder/bin"/*
