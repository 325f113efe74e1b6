"""Writes the dashboards' JSON, the files Grafana loads: `python3 grafana/generate.py`."""

import json
from pathlib import Path
from typing import Any

from generator.monitoring import monitoring
from generator.overview import overview
from generator.route import route

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> list[dict[str, Any]]:
    """All dashboards, the home page first."""
    return [overview(), route(), monitoring()]


def render(dashboard: dict[str, Any]) -> str:
    """The text of a dashboard's file; the same for the same dashboard."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write one file per dashboard, named after its uid."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in dashboards():
        (FOLDER / f"{dashboard['uid']}.json").write_text(render(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
