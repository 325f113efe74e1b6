"""Limits every query to the chosen stack, where one store holds several."""

import re

# `.*` also matches series without the label, which is all of them in a stack's own Prometheus.
SELECTOR = 'stack=~"$stack"'
STRING = r'"(?:[^"\\]|\\.)*"'
TOKEN = re.compile(
    rf"""
    {STRING}
    | \[[^]]*\]                                                            # a window
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)      # names of labels
    | \b(?:and|or|unless|bool|offset|NaN|Inf)\b
    | [$@]\w+ | [\d.]\w*                                                   # a variable, a number
    | \w+(?=\s+(?:by|without)\b) | \w+\s*\(                                # a function
    | (?P<metric>[a-zA-Z_:][\w:]*) (?P<labels>\{{ (?:[^"}}]|{STRING})* \}})?
    """,
    re.VERBOSE,
)


def of_chosen_stack(expression: str) -> str:
    """The PromQL expression, with the variable `$stack` in each of its selectors."""
    return TOKEN.sub(_scoped, expression)


def _scoped(token: re.Match[str]) -> str:
    if not token["metric"]:
        return token[0]
    labels = (token["labels"] or "{}")[1:-1]
    return f"{token['metric']}{{{', '.join(filter(None, (SELECTOR, labels)))}}}"
