#!/usr/bin/env bash
# Sourced by the scripts here: prints progress lines with the seconds since the first script began.
export CI_STARTED=${CI_STARTED:-$EPOCHSECONDS}

say() {
    printf '[%4ds] %s\n' $((EPOCHSECONDS - CI_STARTED)) "$*"
}

fail() {
    say "FAILED: $*" >&2
    exit 1
}
