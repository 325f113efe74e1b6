#!/bin/sh
# Starts Alertmanager with those receivers that have their settings:
#
#     alertmanager.sh alertmanager --storage.path=...
#
# Alertmanager reads neither the environment nor a second file. So a line "# include FILE" of alertmanager.yml is
# replaced by FILE where every ${NAME} in it has a value (${NAME:-default} always has one). A value is the
# environment's, else the first line of the file of that name, in lower case, in ALERT_SECRETS_DIR.
set -eu
umask 077    # the result holds secrets

here=$(dirname "$0")
secrets=${ALERT_SECRETS_DIR:-/run/secrets}
result=${ALERTMANAGER_RUNTIME_CONFIG:-/tmp/alertmanager.yml}

for secret in "$secrets" "$secrets"/alert_*; do
    if [ -e "$secret" ] && [ ! -r "$secret" ]; then
        echo "alertmanager.sh: $secret: not readable for user $(id -u)" >&2
        exit 1
    fi
done

awk -v folder="$here" -v secrets="$secrets" '
    function value(name,    file, line) {
        if (ENVIRON[name] != "")
            return ENVIRON[name]
        file = secrets "/" tolower(name)
        getline line < file
        close(file)
        return line
    }

    # In YAML a quote within single quotes is written twice.
    function fill(line,    name, fallback, text, filled) {
        while (match(line, /\$\{[A-Z_]+(:-[^}]*)?\}/)) {
            name = fallback = substr(line, RSTART + 2, RLENGTH - 3)
            sub(/:-.*/, "", name)
            text = value(name)
            if (text != "")
                given = given " " name
            else if (name == fallback)
                missing = missing " " name
            else
                text = substr(fallback, length(name ":-") + 1)
            gsub(/'\''/, "&&", text)
            filled = filled substr(line, 1, RSTART - 1) text
            line = substr(line, RSTART + RLENGTH)
        }
        return filled line
    }

    function include(file,    line, text) {
        given = missing = ""
        while ((getline line < file) > 0)
            text = text fill(line) "\n"
        close(file)
        if (missing == "")
            printf "%s", text
        else if (given != "") {
            print "alertmanager.sh: " file ": set" given ", but not" missing > "/dev/stderr"
            exit 1
        }
    }

    $1 == "#" && $2 == "include" { include(folder "/" $3); next }
    { print }
' "${ALERTMANAGER_CONFIG:-$here/alertmanager.yml}" > "$result"

exec "$@" --config.file="$result"
