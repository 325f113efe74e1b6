#!/bin/sh
# Starts Alertmanager with the receivers that are set: alertmanager.sh alertmanager --storage.path=...
#
# Alertmanager reads neither the environment nor a second file, and 0.25 cannot read a webhook's URL from a file either.
# So if NAME is set, this script replaces a line "# if NAME: FILE" of alertmanager.yml with the content of FILE, and
# ${NAME} in it with the value, literally. NAME is set in the environment, or by a file with that name in lower case in
# ALERT_SECRETS_DIR.
set -eu
umask 077    # the result holds secrets

here=$(dirname "$0")
result=${ALERTMANAGER_RUNTIME_CONFIG:-/tmp/alertmanager.yml}

refuse() {
    echo "alertmanager.sh: $1" >&2
    exit 1
}

read_secrets() {
    for path in "$1" "$1"/alert_*; do
        if [ -e "$path" ] && [ ! -r "$path" ]; then
            refuse "user $(id -u) may not read $path: chmod a+rX it"
        fi
        name=$(basename "$path")
        case $name in
        *[!a-z_]*) continue ;;    # an editor's backup, or the pattern itself where no file matches
        esac
        [ -f "$path" ] || continue
        # The first line that is not empty; a file from Windows has a carriage return, too.
        value=$(tr -d '\r' < "$path" | sed -n '/[^[:space:]]/{p;q;}')
        [ -n "$value" ] || refuse "$path is empty: put the value in it, or remove it"
        case $name in
        # Alertmanager would print a malformed URL.
        *_url) printf '%s\n' "$value" | grep -Eqx 'https?://[^[:space:]]+' || refuse "there is no URL in $path" ;;
        esac
        export "$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')=$value"
    done
}

# In a subshell, so that the secrets do not stay in the environment.
(
    read_secrets "${ALERT_SECRETS_DIR:-/run/secrets}"
    export ALERT_SMTP_REQUIRE_TLS="${ALERT_SMTP_REQUIRE_TLS:-true}"
    if [ -n "${ALERT_EMAIL_TO:-}" ]; then
        [ -n "${ALERT_EMAIL_FROM:-}" ] || refuse "ALERT_EMAIL_TO is set, so set ALERT_EMAIL_FROM in .env too"
        [ -n "${ALERT_SMTP_HOST:-}" ] || refuse "ALERT_EMAIL_TO is set, so set ALERT_SMTP_HOST in .env too, as host:port"
    fi
    HERE=$here awk '
        function filled(line,    done, value) {
            while (match(line, /\$\{ALERT_[A-Z_]+\}/)) {
                value = ENVIRON[substr(line, RSTART + 2, RLENGTH - 3)]
                gsub(/\047/, "&&", value)    # within single quotes, YAML writes a quote twice
                done = done substr(line, 1, RSTART - 1) value
                line = substr(line, RSTART + RLENGTH)
            }
            return done line
        }
        $1 == "#" && $2 == "if" && $3 ~ /^ALERT_[A-Z_]+:$/ {
            if (ENVIRON[substr($3, 1, length($3) - 1)] != "") {
                file = ENVIRON["HERE"] "/" $4
                while ((got = getline line < file) > 0) print filled(line)
                if (got < 0) { print "alertmanager.sh: cannot read " file > "/dev/stderr"; exit 1 }
                close(file)
            }
            next
        }
        { print }
    ' "${ALERTMANAGER_CONFIG:-$here/alertmanager.yml}"
) > "$result"

exec "$@" --config.file="$result"
