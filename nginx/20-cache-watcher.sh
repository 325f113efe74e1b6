#!/bin/sh
# The image's entry point runs this before it becomes nginx. If nginx ends, the container does, and the watcher with it.
sh /usr/local/bin/cache-watcher.sh "$NGINX_CACHE_DIR/responses" "$NGINX_METRICS_DIR/responses" </dev/null &
