#!/bin/sh
# Starts Alertmanager with the receivers that are set: alertmanager.sh alertmanager --storage.path=...
#
# Alertmanager reads neither the environment nor a second file. So a line "# if NAME: FILE" of alertmanager.yml
# becomes FILE, with its ${...} filled in, where NAME is set: in the environment, or by a file of that name,
# in lower case, in ALERT_SECRETS_DIR.
set -eu
umask 077    # the result holds secrets

here=$(dirname "$0")
result=${ALERTMANAGER_RUNTIME_CONFIG:-/tmp/alertmanager.yml}

refuse() {
    echo "alertmanager.sh: $1" >&2
    exit 1
}

# Within single quotes, as the values stand in the templates, YAML has a quote written twice.
double_quotes() {
    sed "s/'/''/g"
}

read_environment() {
    for name in $(env | sed -n 's/^\(ALERT_[A-Z_]*\)=.*/\1/p'); do
        eval "value=\$$name"
        export "$name=$(printf '%s\n' "$value" | double_quotes)"
    done
}

read_secrets() {
    for path in "$1" "$1"/alert_*; do
        if [ -e "$path" ] && [ ! -r "$path" ]; then
            refuse "user $(id -u) may not read $path: chmod a+rX it"
        fi
        name=$(basename "$path")
        case $name in
        *[!a-z_]*) continue ;;    # an editor's backup, or no file at all
        esac
        [ -f "$path" ] || continue
        # The first line that is not empty; a file from Windows has a carriage return, too.
        value=$(tr -d '\r' < "$path" | sed -n '/[^[:space:]]/{p;q;}')
        [ -n "$value" ] || refuse "$path is empty: put the value in it, or remove it"
        case $name in
        # Alertmanager would print what is no URL.
        *_url) printf '%s\n' "$value" | grep -Eqx 'https?://[^[:space:]]+' || refuse "there is no URL in $path" ;;
        esac
        export "$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')=$(printf '%s\n' "$value" | double_quotes)"
    done
}

fill_in() {
    eval "cat <<END
$(cat "$1")
END"
}

# In a subshell, so that the secrets do not stay in the environment.
(
    secrets=${ALERT_SECRETS_DIR:-/run/secrets}    # as it is before its own quotes are doubled
    read_environment
    read_secrets "$secrets"
    while IFS= read -r line; do
        case $line in
        *"# if ALERT_"*": "*)
            name=${line#*# if }
            if env | grep -q "^${name%%:*}=."; then
                fill_in "$here/${line##*: }"
            fi
            ;;
        *) printf '%s\n' "$line" ;;
        esac
    done < "${ALERTMANAGER_CONFIG:-$here/alertmanager.yml}"
) > "$result"

exec "$@" --config.file="$result"
