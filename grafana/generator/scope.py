"""Limits every query to the chosen stack, where one store holds several."""

import re

# `.*` also matches series without the label, which is all of them in a stack's own Prometheus.
SELECTOR = 'stack=~"$stack"'
STRING = r'"(?:[^"\\]|\\.)*"'
LABELS = rf'\{{ (?:[^"}}]|{STRING})* \}}'
TOKEN = re.compile(
    rf"""
    {STRING}
    | \[[^]]*\]                                                            # a window
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)      # names of labels
    | \b(?:and|or|unless|bool|offset|NaN|Inf)\b
    | [$@]\w+ | [\d.]\w*                                                   # a variable, a number
    | \w+(?=\s+(?:by|without)\b) | \w+\s*\(                                # a function
    | (?P<metric>[a-zA-Z_:][\w:]*) (?P<labels>{LABELS})?
    | (?P<any_metric>{LABELS})
    """,
    re.VERBOSE,
)


def of_chosen_stack(expression: str) -> str:
    """The PromQL expression, with the variable `$stack` in each of its selectors."""
    return TOKEN.sub(_scoped, expression)


def _scoped(token: re.Match[str]) -> str:
    metric, labels = token["metric"] or "", token["labels"] or token["any_metric"] or ""
    if not metric and not labels:
        return token[0]
    return f"{metric}{{{', '.join(filter(None, (SELECTOR, labels[1:-1])))}}}"
