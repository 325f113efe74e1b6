#!/bin/sh
# Writes conf.d/X from templates/X.template, subfolders too, by envsubst.
# Upstream's contract: only variables that are set (and match NGINX_ENVSUBST_FILTER) are replaced, so
# nginx's own $variables stay; an output folder that can't be written to is reported, not an error.
set -e

templates=${NGINX_ENVSUBST_TEMPLATE_DIR:-/etc/nginx/templates}
suffix=${NGINX_ENVSUBST_TEMPLATE_SUFFIX:-.template}
output=${NGINX_ENVSUBST_OUTPUT_DIR:-/etc/nginx/conf.d}

say() {
    [ -n "${NGINX_ENTRYPOINT_QUIET_LOGS:-}" ] || echo "${0##*/}: $*"
}

[ -d "$templates" ] || exit 0
if [ ! -w "$output" ]; then
    say "ERROR: $templates exists, but $output is not writable"
    exit 0
fi

names=$(awk -v filter="${NGINX_ENVSUBST_FILTER:-}" \
    'BEGIN { for (name in ENVIRON) if (name ~ filter) printf "${%s} ", name }')

find "$templates" -follow -type f -name "*$suffix" | while read -r template; do
    relative=${template#"$templates"/}
    target=$output/${relative%"$suffix"}
    say "Running envsubst on $template to $target"
    mkdir -p "${target%/*}"
    envsubst "$names" <"$template" >"$target"
done
