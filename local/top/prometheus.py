"""Prometheus' HTTP API: queries at one time and over a range."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

TIMEOUT = 20.0  # seconds
PROXY_ERRORS = (502, 504)  # console-gate sends these while Prometheus does not answer

Labels = dict[str, str]


class PrometheusError(Exception):
    """Prometheus does not answer, or refuses a query; the message says which."""


class Prometheus:
    """A server, by its URL without a slash at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        # The environment's proxy is for the outside, not for this machine's loopback.
        loopback = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        handlers = [urllib.request.ProxyHandler({})] if loopback else []
        self._opener = urllib.request.build_opener(*handlers)

    def instant(self, expression: str, time: float) -> list[tuple[Labels, float]]:
        """The samples of an expression at a time (Unix seconds), without those that are NaN."""
        result = self._get("query", {"query": expression, "time": f"{time:.3f}"})
        samples = [(sample["metric"], float(sample["value"][1])) for sample in result]
        return [(labels, value) for labels, value in samples if not math.isnan(value)]

    def range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[list[tuple[float, float]]]:
        """For each series of an expression, its values by time (Unix seconds), without NaN."""
        result = self._get(
            "query_range",
            {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": str(step)},
        )
        return [
            [
                (float(time), float(value))
                for time, value in series["values"]
                if not math.isnan(float(value))
            ]
            for series in result
        ]

    def _get(self, path: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with self._opener.open(url, timeout=TIMEOUT) as response:
                return json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(_refusal(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise PrometheusError(f"Prometheus does not answer at {self.url}: {reason}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise PrometheusError(f"what answers at {self.url} is not Prometheus") from error


def _refusal(error: urllib.error.HTTPError) -> str:
    """What Prometheus gave as the reason of a status that is not 200."""
    if error.code in PROXY_ERRORS:
        return f"Prometheus does not answer: the proxy in front of it says {error.code}"
    text = error.read(1000).decode(errors="replace")
    try:
        text = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        text = text.strip().partition("\n")[0]
    return f"Prometheus answers {error.code}: {text or error.reason}"
