"""The dashboards' JSON: current, without layout gaps, by convention, and loadable by Grafana.

Some tests are rules of grafana/dashboard-linter, and have the linter's names for them. Its rules on
`job` do not apply: each metric belongs to one job, so the metric's name identifies the job.
"""

from __future__ import annotations

import configparser
import json
import operator
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import generate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
UIDS = {"stack-overview", "route", "monitoring"}

# Ids of Grafana's value formats.
UNITS = {"Bps", "bytes", "percentunit", "reqps", "s", "short"}

Colour = tuple[int, int, int]

# Of Grafana's panels, by theme.
BACKGROUNDS: dict[str, Colour] = {"dark": (24, 27, 31), "light": (255, 255, 255)}
# The ends of colour schemes of d3 that Grafana reverses in the light theme.
SCHEMES: dict[str, tuple[Colour, Colour]] = {"Cool": ((110, 64, 170), (175, 240, 91))}

# Windows that belong to the definition of a signal, and do not depend on the time range.
FIXED_WINDOWS = {
    "In flight by worker": {"30s"},
    "Malformed": {"5m"},
    "Routes": {"5m", "5m:5s"},
    "Rule failures": {"5m"},
    "Undelivered": {"5m"},
}

Dashboard = dict[str, Any]
Panel = dict[str, Any]

DASHBOARDS: list[Dashboard] = [json.loads(path.read_text()) for path in FILES]


def panels(dashboard: Dashboard) -> list[Panel]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Dashboard) -> list[dict[str, Any]]:
    return [target for panel in panels(dashboard) for target in panel["targets"]]


def expressions(dashboard: Dashboard) -> list[str]:
    """Every PromQL expression: of panels, annotations and variables."""
    queried = targets(dashboard) + [each["target"] for each in dashboard["annotations"]["list"]]
    variables = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    return [target["expr"] for target in queried] + variables


each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d["uid"])
each_panel = pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=f"{dashboard['uid']}-{panel['title']}")
        for dashboard in DASHBOARDS
        for panel in panels(dashboard)
    ],
)


def test_the_json_is_up_to_date() -> None:
    written = {f"{each['uid']}.json": generate.render(each) for each in generate.dashboards()}
    assert {path.name: path.read_text() for path in FILES} == written, (
        "stale: run `python3 grafana/generate.py`"
    )


def test_the_json_is_the_same_every_time() -> None:
    command = "import generate; print([generate.render(each) for each in generate.dashboards()])"
    written = {
        subprocess.run(
            [sys.executable, "-c", command],
            cwd=GRAFANA,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(written) == 1


def test_uids_are_those_that_links_and_alerts_rely_on() -> None:
    assert {dashboard["uid"] for dashboard in DASHBOARDS} == UIDS
    assert len({dashboard["title"] for dashboard in DASHBOARDS}) == len(UIDS)


# Layout


@each_dashboard
def test_panels_fill_the_grid_without_overlap_or_gap(dashboard: Dashboard) -> None:
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    height = max(y for _, y in cells) + 1
    assert cells == Counter((x, y) for x in range(24) for y in range(height))


@each_dashboard
def test_panel_ids_and_titles_do_not_clash(dashboard: Dashboard) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = Counter((panel["title"], panel["type"]) for panel in panels(dashboard))
    assert set(titles.values()) == {1}


# Conventions


@each_panel
def test_panel_title_description_rule(panel: Panel) -> None:
    assert panel["title"]
    # What it shows, what is normal, and what to do need more than one sentence.
    assert len(re.findall(r"[.?](?:\s|$)", panel["description"])) >= 2


def test_descriptions_name_panels_and_rows_that_exist() -> None:
    titles = {panel["title"] for dashboard in DASHBOARDS for panel in dashboard["panels"]}
    # "Rules" is a page of Prometheus.
    known = titles | {dashboard["title"] for dashboard in DASHBOARDS} | {"Rules"}
    described = [panel["description"] for dashboard in DASHBOARDS for panel in panels(dashboard)]
    named = {name for text in described for name in re.findall(r"\*([A-Z][^*]+)\*", text)}
    assert len(named) > 10
    assert named <= known


@each_panel
def test_panel_units_rule(panel: Panel) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS or re.fullmatch(r"suffix:[\w ]*/(s|min)", unit)


@each_panel
def test_a_panel_without_data_says_so_in_words(panel: Panel) -> None:
    if panel["type"] == "heatmap":  # which ignores noValue
        assert "“No data” means: " in panel["description"]
    else:
        assert panel["fieldConfig"]["defaults"]["noValue"]


@each_dashboard
def test_template_datasource_rule(dashboard: Dashboard) -> None:
    sources = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert [(v["name"], v["label"], v["query"]) for v in sources] == [
        ("datasource", "Data source", "prometheus")
    ]


@each_dashboard
def test_panel_datasource_rule(dashboard: Dashboard) -> None:
    every = [*panels(dashboard), *targets(dashboard), *dashboard["annotations"]["list"]]
    every += [v for v in dashboard["templating"]["list"] if v["type"] == "query"]
    for each in every:
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert json.dumps(dashboard).count('"datasource": {') == len(every)


@each_dashboard
def test_template_instance_rule(dashboard: Dashboard) -> None:
    """Also for `route`: a dashboard has each variable that its queries filter by, with an All."""
    used = {name for expr in expressions(dashboard) for name in re.findall(r'=~"\$(\w+)"', expr)}
    queried = [v for v in dashboard["templating"]["list"] if v["type"] == "query"]
    choices = {v["name"]: v for v in queried if not v["hide"]}
    assert set(choices) <= used <= {v["name"] for v in queried}
    for name, variable in choices.items():
        assert variable["label"] == name.capitalize()
        # In a stack's own Prometheus no series has the label `stack`.
        assert variable["allValue"] == (".*" if name == "stack" else ".+")
        assert variable["includeAll"]  # or Grafana would not escape the value


@each_dashboard
def test_template_on_time_change_reload_rule(dashboard: Dashboard) -> None:
    queried = [v for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert {variable["refresh"] for variable in queried} <= {2}


@each_dashboard
def test_uneditable_dashboard_rule(dashboard: Dashboard) -> None:
    assert not dashboard["editable"]


@each_panel
def test_target_rate_interval_rule(panel: Panel) -> None:
    windows = {
        window for target in panel["targets"] for window in re.findall(r"\[(.+?)\]", target["expr"])
    }
    assert windows <= {"$__rate_interval"} | FIXED_WINDOWS.get(panel["title"], set())


@each_panel
def test_counters_are_read_as_rates(panel: Panel) -> None:
    for target in panel["targets"]:
        bare = re.sub(r"rate\(\(1 \* .+?\)\[\w+:\w+\]\)", "", target["expr"])
        bare = re.sub(r"(rate|increase)\(\w+(\{[^}]*\})?\[[^]]+\]\)", "", bare)
        assert not re.search(r"_(total|bucket|count|sum)\b(?!:)", bare)


@each_panel
def test_every_series_has_a_legend(panel: Panel) -> None:
    if panel["type"] == "table":
        return
    assert all(target["legendFormat"] for target in panel["targets"])


@each_dashboard
def test_cursor_is_shared(dashboard: Dashboard) -> None:
    assert dashboard["graphTooltip"] == 1


@each_panel
def test_limits_are_read_from_rules_and_drawn_as_dashed_red_lines(panel: Panel) -> None:
    """A number that alerts compare with is written once, in prometheus/rules/thresholds.yml."""
    assert panel["fieldConfig"]["defaults"].get("thresholds", {"steps": [1]})["steps"][1:] == []
    for target in panel["targets"]:
        if "threshold:" in target["expr"] and panel["type"] == "timeseries":
            drawn = {
                each["id"]: each["value"]
                for override in panel["fieldConfig"]["overrides"]
                if override["matcher"] == {"id": "byFrameRefID", "options": target["refId"]}
                for each in override["properties"]
            }
            assert drawn["color"]["fixedColor"] == "red"
            assert drawn["custom.lineStyle"]["fill"] == "dash"


def test_a_name_has_one_colour_on_all_panels() -> None:
    colours = defaultdict(set)
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for override in panel["fieldConfig"]["overrides"]:
                for each in override["properties"]:
                    if each["id"] == "color" and override["matcher"]["id"] == "byName":
                        colour = each["value"].get("fixedColor", "by threshold")
                        colours[override["matcher"]["options"]].add(colour)
    assert {name: used for name, used in colours.items() if len(used) > 1} == {}
    assert colours["HIT"] == {"green"}
    assert colours["MISS"] == {"orange"}
    assert colours["5xx"] == {"red"}


def contrast(colour: Colour, other: Colour) -> float:
    """The contrast of two colours by WCAG, from 1 to 21."""

    def luminance(colour: Colour) -> float:
        shares = [part / 255 for part in colour]
        linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in shares]
        return sum(map(operator.mul, (0.2126, 0.7152, 0.0722), linear))

    dark, light = sorted(map(luminance, (colour, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "background"), BACKGROUNDS.items())
def test_the_rarest_cells_of_a_heatmap_can_be_seen(theme: str, background: Colour) -> None:
    heatmaps = [
        panel
        for dashboard in DASHBOARDS
        for panel in panels(dashboard)
        if panel["type"] == "heatmap"
    ]
    assert len(heatmaps) == 3
    for panel in heatmaps:
        colour = panel["options"]["color"]
        first, last = SCHEMES[colour["scheme"]]
        # Grafana reverses these schemes in the light theme by itself.
        rarest = last if colour["reverse"] != (theme == "light") else first
        # What WCAG asks for parts of graphics.
        assert contrast(rarest, background) >= 3
        # Cells of a pixel or two could not be seen.
        assert panel["maxDataPoints"] <= 150


@each_dashboard
def test_links_between_dashboards_resolve_and_keep_time_and_variables(
    dashboard: Dashboard,
) -> None:
    for url in re.findall(r'"url": "(/d/[^"]+)"', json.dumps(dashboard)):
        assert re.match(r"/d/([\w-]+)/", url)[1] in UIDS
        assert "${__url_time_range}" in url
        assert "${datasource:queryparam}" in url
        assert "${stack:queryparam}" in url
    everywhere = next(link for link in dashboard["links"] if link["type"] == "dashboards")
    assert set(everywhere["tags"]) <= set(dashboard["tags"])
    assert everywhere["keepTime"]
    assert everywhere["includeVars"]


@each_dashboard
def test_addresses_in_links_are_variables_of_the_dashboard(dashboard: Dashboard) -> None:
    """They are read from Prometheus, since ports differ from one stack to another."""
    urls = re.findall(r'"url": "([^"]+)"', json.dumps(dashboard))
    outside = [url for url in urls if not url.startswith("/d/")]
    assert outside
    names = {re.match(r"\$\{(\w+)\}[/#]", url)[1] for url in outside}
    found = {v["name"]: v for v in dashboard["templating"]["list"]}
    for name in names:
        assert found[name]["regex"] == f'/{name}_url="([^"]+)"/'
        assert found[name]["hide"] == 2


def test_every_series_by_route_leads_to_its_dashboard() -> None:
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            if "{{route}}" in {target["legendFormat"] for target in panel["targets"]}:
                links = json.dumps(panel["fieldConfig"])
                route = "data.fields" if panel["type"] == "table" else "field.labels"
                assert f"var-route=${{__{route}.route:percentencode}}" in links


# What the dashboards rely on


@each_dashboard
def test_recorded_series_have_a_rule(dashboard: Dashboard) -> None:
    recorded = {
        rule["record"]
        for path in (ROOT / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    used = set(re.findall(r"\b[a-z_]+(?::[a-z0-9_]+)+", " ".join(expressions(dashboard))))
    assert used <= recorded


def provisioned(kind: str) -> dict[str, Any]:
    return yaml.safe_load((GRAFANA / "provisioning" / kind / f"{kind}.yml").read_text())


def test_data_sources_have_the_uids_that_dashboards_and_each_other_name() -> None:
    sources = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
    assert {uid: source["type"] for uid, source in sources.items()} == {
        "prometheus": "prometheus",
        "alertmanager": "alertmanager",
    }
    assert sources["prometheus"]["isDefault"]
    assert sources["prometheus"]["jsonData"]["alertmanagerUid"] in sources
    for dashboard in DASHBOARDS:
        variable = dashboard["templating"]["list"][0]
        chosen = sources[variable["current"]["value"]]
        assert (chosen["type"], chosen["name"]) == (variable["query"], variable["current"]["text"])


def test_grafana_knows_the_scrape_interval() -> None:
    """$__rate_interval is derived from it."""
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    source = provisioned("datasources")["datasources"][0]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def grafana_service() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]


def test_grafana_finds_provisioning_settings_and_dashboards_in_its_container() -> None:
    mounts = {volume["source"]: volume["target"] for volume in grafana_service()["volumes"]}
    assert mounts["./grafana/grafana.ini"] == "/etc/grafana/grafana.ini"
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./grafana/dashboards"] == grafana_service()["environment"]["GRAFANA_DASHBOARDS"]
    (provider,) = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "${GRAFANA_DASHBOARDS}"
    assert provider["folderUid"] not in UIDS


def test_every_variable_grafana_expands_is_set() -> None:
    """Grafana has no defaults for them: an unset variable expands to an empty string."""
    files = [GRAFANA / "grafana.ini", *(GRAFANA / "provisioning").rglob("*.yml")]
    text = "\n".join(path.read_text() for path in files)
    used = set(re.findall(r"\$\{(\w+)\}", re.sub(r"(?m)^\s*#.*", "", text)))
    assert used <= set(grafana_service()["environment"])


@pytest.fixture
def grafana_ini() -> configparser.ConfigParser:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(GRAFANA / "grafana.ini")
    return settings


def test_a_dashboard_goes_with_its_file_and_cannot_be_changed_in_the_browser() -> None:
    text = (GRAFANA / "provisioning" / "dashboards" / "dashboards.yml").read_text()
    (provider,) = yaml.safe_load(text)["providers"]
    assert provider["disableDeletion"] is False
    assert provider["allowUiUpdates"] is False


def test_compression_that_takes_grafana_13_beyond_its_memory_limit_is_off(
    grafana_ini: configparser.ConfigParser,
) -> None:
    assert grafana_ini.getboolean("server", "enable_gzip") is False


def test_the_overview_is_the_home_page(grafana_ini: configparser.ConfigParser) -> None:
    home = grafana_ini["dashboards"]["default_home_dashboard_path"]
    assert (GRAFANA / "dashboards" / Path(home).name).is_file()
    assert home == "${GRAFANA_DASHBOARDS}/stack-overview.json"


def test_nobody_logs_in_with_a_known_password(grafana_ini: configparser.ConfigParser) -> None:
    unless_set = grafana_ini["security"]["admin_password"]
    assert unless_set == "$__file{/proc/sys/kernel/random/uuid}"
    assert grafana_ini["auth.anonymous"]["enabled"] == "true"
    assert grafana_ini["auth.anonymous"]["org_role"] == "Viewer"
    assert "GF_SECURITY_ADMIN_PASSWORD" in grafana_service()["environment"]
