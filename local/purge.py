"""Removes entries from nginx's cache: ./stack purge.

The same shell script runs beside nginx in both modes, since nginx's container has no Python. If an
entry's file is gone, nginx treats the entry as missing and asks Flask again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess

from local.settings import ROOT, StackError

# An entry's name is an MD5 in hexadecimal, and its file has a line "KEY: " before the response.
# Files that nginx is still writing have longer names. nginx keeps some files open, and notices
# within a second that one is gone (open_file_cache_valid in nginx/include/cached-location.conf).
SCRIPT = r"""
export LC_ALL=C
find "$NGINX_CACHE_DIR" -type f -name '????????????????????????????????' \
    -exec grep -l -e "$1" {} + |
    xargs -n 500 sh -c 'rm -f -- "$@" && echo $#' sh &&
    sleep 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ./stack purge."""
    parser.add_argument(
        "prefix",
        nargs="?",
        default="",
        metavar="PREFIX",
        help="remove only entries whose path and arguments begin with PREFIX, such as /reports/",
    )


def run(
    arguments: argparse.Namespace, shell: list[str], environment: dict[str, str] | None = None
) -> int:
    """Remove entries and print how many; returns the exit status."""
    entries = purge(arguments.prefix, shell, environment)
    print(f"{entries} {'entry' if entries == 1 else 'entries'} removed from nginx's cache")
    return 0


def pattern(prefix: str) -> str:
    """Return grep's pattern for the keys whose path begins with a prefix.

    Raises:
        StackError: the prefix is not a path.
    """
    if prefix and not prefix.startswith("/"):
        raise StackError(f"{prefix!r} does not begin with /: give the path that clients ask for")
    # The key is scheme, method, host and path, and only the path has slashes: see proxy_cache_key.
    return "^KEY: [^/]*" + re.sub(r"([][\\.*^$])", r"\\\1", prefix)


def purge(prefix: str, shell: list[str], environment: dict[str, str] | None = None) -> int:
    """Remove the entries and return how many there were.

    Args:
        prefix: what their paths begin with; empty for all.
        shell: the command that runs `sh` beside nginx, where NGINX_CACHE_DIR is set.
        environment: variables to set, for a shell on this machine.

    Raises:
        StackError: the cache can't be searched.
    """
    done = subprocess.run(
        [*shell, "-c", SCRIPT, "sh", pattern(prefix)],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or done.stderr:
        raise StackError(f"the cache could not be purged:\n{done.stderr.strip()}")
    return sum(map(int, done.stdout.split()))
