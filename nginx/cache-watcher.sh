#!/bin/sh
# Takes nginx's cache out of use while it cannot be written, and back: nginx fails a request whose answer it cannot store. The
# server in flask-app.conf.template looks for the file that says so; nginx-access-exporter exports it.
#
# usage: cache-watcher.sh FOLDER STATE    where FOLDER is the zone's, and STATE.cache-on or STATE.cache-off is the file
folder=$1
state=$2
seconds=2              # between two attempts
attempts=300           # between two removals of old entries: ten minutes
longest_age=60         # minutes since an entry was stored or revalidated

# As much as a large answer, so that the cache is out of use before the last byte of the disk is.
can_write() {
    mkdir -p "$folder" && head -c 1048576 /dev/zero >"$folder/.attempt"
    failed=$?
    rm -f "$folder/.attempt"
    return $failed
}

# A rename and a touch need no room: this folder may be on the same disk.
set_state() {
    if [ -e "$state.cache-$2" ]; then
        echo "cache-watcher: $folder $3"
        mv "$state.cache-$2" "$state.cache-$1"
    fi
    touch "$state.cache-$1"
}

attempt=0
while :; do
    if can_write 2>/dev/null; then
        set_state on off "can be written: nginx uses its cache again"
    else
        set_state off on "cannot be written: nginx goes on without its cache"
    fi
    # nginx serves an expired entry for as long as its refresh gets an answer that it may not store: docs/caching.md.
    if [ $((attempt % attempts)) -eq 0 ]; then
        find "$folder" -type f -mmin +$longest_age -name '????????????????????????????????' -exec rm -f {} +
    fi
    attempt=$((attempt + 1))
    sleep $seconds
done
