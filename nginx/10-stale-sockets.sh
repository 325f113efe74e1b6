#!/bin/sh
# The image's entry point runs this before nginx, which does not start while an nginx that was killed has left its socket.
rm -f "$NGINX_METRICS_DIR"/*.sock
