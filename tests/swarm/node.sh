#!/bin/sh
# A node of a swarm in a container: an engine, and a registry in which every node finds the same images at one address.
# With REGISTRY_ONLY, the registry alone.
set -eu
cat > /etc/registry.yml <<EOF
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":$REGISTRY_PORT"}
EOF
[ -z "${REGISTRY_ONLY:-}" ] || exec docker-registry serve /etc/registry.yml

echo "nameserver 127.0.0.1" > /etc/resolv.conf    # else a look for another registry takes half a minute
for folder in /sys/fs/cgroup /sys/fs/cgroup/*; do
    ! mountpoint -q "$folder" || mount -o remount,bind,rw "$folder"
done
docker-registry serve /etc/registry.yml &
rm -f /var/run/docker.pid    # of an engine that was killed
exec dockerd --host=unix:///var/run/docker.sock --host="unix:///sockets/$(hostname)"
