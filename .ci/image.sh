#!/usr/bin/env bash
# Sourced by the scripts here: makes images of Debian's packages, for an engine without a registry.

# make_tar SUITE FILE [OPTION ...]: a minimal Debian as a tar file. OPTIONs are mmdebstrap's.
make_tar() {
    local suite=$1 file=$2 mirror
    shift 2
    # The mirror that this machine uses; without one, mmdebstrap uses its default.
    mapfile -t mirror < <(apt-get --print-uris update | sed -n "s|^'\([^']*/debian/\)dists/.*|\1|p")
    # A mirror may be out of date, so its age is not checked; its signatures are.
    mmdebstrap --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' "$@" \
        "$suite" "$file" "${mirror[@]:0:1}"
}

# make_image IMAGE SUITE COMMAND [OPTION ...]: an image that runs COMMAND. Keeps an image of that name.
make_image() (
    image=$1 suite=$2 command=$3
    shift 3
    ! docker image inspect "$image" >/dev/null 2>&1 || exit 0
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    make_tar "$suite" "$folder/image.tar" --quiet "$@" || fail "$image could not be made"
    docker import --change "CMD $command" "$folder/image.tar" "$image" >/dev/null
    say "made $image"
)
