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

read_secrets() {
    folder=${ALERT_SECRETS_DIR:-/run/secrets}
    for path in "$folder" "$folder"/alert_*; do
        if [ -e "$path" ] && [ ! -r "$path" ]; then
            refuse "user $(id -u) may not read $path: chmod a+rX it"
        elif [ -f "$path" ]; then
            # Alertmanager would print what is no URL.
            case $path in
            *_url) grep -Eqx 'https?://[^[:space:]]+' "$path" || refuse "there is no URL in $path" ;;
            esac
            # In YAML, a quote within single quotes is written twice.
            export "$(basename "$path" | tr '[:lower:]' '[:upper:]')=$(sed "s/'/''/g" "$path")"
        fi
    done
}

fill_in() {
    eval "cat <<END
$(cat "$1")
END"
}

# In a subshell, so that the secrets do not stay in the environment.
(
    read_secrets
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
