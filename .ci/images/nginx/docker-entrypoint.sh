#!/bin/sh
# Runs the scripts in /docker-entrypoint.d in order, then the command.
# Upstream's contract: executable *.envsh are sourced and *.sh run, only when the command is nginx.
# Variables from *.envsh reach the scripts after them, not nginx itself (the loop is a subshell).
set -e

say() {
    [ -n "${NGINX_ENTRYPOINT_QUIET_LOGS:-}" ] || echo "$0: $*"
}

case "$1" in
nginx | nginx-debug)
    find /docker-entrypoint.d -follow -type f | sort -V | while read -r part; do
        if [ ! -x "$part" ]; then
            say "Ignoring $part, not executable"
            continue
        fi
        case "$part" in
        *.envsh)
            say "Sourcing $part"
            # shellcheck source=/dev/null
            . "$part"
            ;;
        *.sh)
            say "Launching $part"
            "$part"
            ;;
        *) say "Ignoring $part" ;;
        esac
    done
    say "Configuration complete; ready for start up"
    ;;
esac

exec "$@"
