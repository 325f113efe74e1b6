"""Documents agree with the files they describe, their links resolve, and the wording is plain."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from local.settings import GATED_PORTS, INNER_PORTS, ROOT, SERVICES
from tests import sample


def tracked(*patterns: str) -> list[Path]:
    """The project's files that match."""
    return [ROOT / name for name in sample.tracked(*patterns)]


DOCUMENTS = [path for path in tracked("*.md", "*.html") if "templates" not in path.parts]


def named(path: Path) -> str:
    """A test's id for a file."""
    return str(path.relative_to(ROOT))


# Links


class Html(HTMLParser):
    """Collects the links and the ids of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.anchors.append(value or "")


def without_code(markdown: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S))


def links(path: Path) -> list[str]:
    """The targets of a document's links, as they are written."""
    text = path.read_text()
    if path.suffix == ".html":
        return Html(text).links
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text)) + Html(without_code(text)).links


def anchors(path: Path) -> list[str]:
    """The fragments of a document's parts; in Markdown, those that forges make from headings."""
    text = path.read_text()
    if path.suffix == ".html":
        return Html(text).anchors
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return slugs + Html(text).anchors


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in links(path):
        if re.match(
            r"(https?|mailto):|/", link
        ):  # "/…" is a page of the server that has the document
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if sample.is_missing(target) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_anchors_are_unique(path: Path) -> None:
    found = anchors(path)
    assert sorted(found) == sorted(set(found))


def test_files_that_documents_name_exist() -> None:
    """Names in code style that begin with one of the project's folders; secrets are the user's."""
    folders = "|".join(
        re.escape(each) for each in {named(path).split("/")[0] for path in tracked("*/*")}
    )
    missing = {
        f"{named(document)}: {name}"
        for document in DOCUMENTS
        for name in re.findall(rf"[`>]((?:{folders})/[\w./-]+)[`<]", document.read_text())
        if sample.is_missing(ROOT / name) and not name.startswith("prometheus/secrets/")
    }
    assert not missing


# The tables of docs/architecture.md


def table(document: str, *columns: str) -> list[list[str]]:
    """The rows, without code style, of the table with these columns."""
    head = "| " + " | ".join(columns) + " |\n"
    text = (ROOT / document).read_text()
    assert head in text, f"{document} has no table with the columns {columns}"
    lines = text.split(head)[1].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def published(ports: list[str]) -> dict[str, str]:
    """How compose.yaml publishes the container's ports, as the document's table writes it."""
    found = {}
    for text in ports:
        line = re.fullmatch(r"(127\.0\.0\.1:)?\$\{\w+:-([\d-]+)\}:(\d+)", text)
        assert line, text
        found[line[3]] = f"{line[2]}, {'loopback' if line[1] else 'all addresses'}"
    return found


def test_architecture_has_the_ports_of_compose_and_of_local_processes() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    columns = ("Container port", "With Docker: on this machine", "Without Docker", "Variable")
    rows = table("docs/architecture.md", "Service", "Image", *columns)
    inner = {"NGINX_STATUS_PORT": "nginx-proxy", "FLASK_METRICS_PORT": "flask-app"}
    gated = {"PROMETHEUS_GATED_PORT": "prometheus", "ALERTMANAGER_GATED_PORT": "alertmanager"}
    gate = compose["console-gate"]["ports"]
    expected = {
        (
            service.name,
            str(service.container_port),
            published([*compose[service.name].get("ports", []), *gate]).get(
                str(service.container_port), "not published"
            ),
            str(service.default_port),
            service.port_variable,
        )
        for service in SERVICES
    } | {
        (inner[variable], str(port), "not published", str(port), variable)
        for variable, port in INNER_PORTS.items()
    }
    expected |= {
        (gated[variable], "-", "not published", str(port), variable)
        for variable, port in GATED_PORTS.items()
    }
    assert {(name, port.split()[0], *rest) for name, _, port, *rest in rows} == expected


def test_architecture_has_the_images_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    rows = table(
        "docs/architecture.md",
        *("Service", "Image", "Container port"),
        *("With Docker: on this machine", "Without Docker", "Variable"),
    )
    written = {name: image for name, image, *_ in rows if image}
    for name, service in compose.items():
        if "profiles" in service:
            continue
        if "build" in service:
            build = service["build"]
            context = str(Path(build["context"], build.get("dockerfile", "Dockerfile")).parent)
            image = re.search(r"\w+_IMAGE", " ".join(service["build"]["args"]))
            assert image
            assert written.pop(name) == f"built from {context}/ on {image[0]}"
        else:
            assert f"${{{written.pop(name)}:?" in service["image"]
    assert written == {}


def test_architecture_has_the_health_checks_of_local_processes() -> None:
    rows = table("docs/architecture.md", "Service", "Path")
    assert [name for name, _ in rows] == sorted(
        {service.name for service in SERVICES}, key=[name for name, _ in rows].index
    )
    paths = {service.name: service.health_path for service in SERVICES}
    for name, path in rows:
        assert path.split()[0].strip(",") == paths[name]


def test_settings_that_the_readme_names_are_where_it_says() -> None:
    text = (ROOT / "README.md").read_text().split("| To | Change | In |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\|.+\| (.+) \| `([^`]+)`[^|`]* \|$", text, re.M)
    assert len(rows) == len(text.splitlines()) - 1
    for change, place in rows:
        path = ROOT / place
        # Compose and local processes pass more variables on than .env lists.
        files = [path] if path.is_file() else tracked(f"{path.parent.relative_to(ROOT)}/*")
        files += [ROOT / "compose.yaml"] if place == ".env" else []
        content = "\n".join(each.read_text() for each in files)
        for name in re.findall(r"`([\w:]+)", change):
            assert name in content, f"{name} is not in {place}"


def test_architecture_has_the_fields_of_the_metrics_log() -> None:
    snippet = (ROOT / "nginx/include/metrics-log-format.conf").read_text()
    log_format = re.sub(r"#.*", "", snippet.split("log_format metrics")[1].split(";")[0])
    fields = "".join(re.findall(r"'([^']*)'", log_format)).split(r"\t")
    written = re.search(
        r"^nam/.*?(?=^```)", (ROOT / "docs/architecture.md").read_text(), re.M | re.S
    )
    assert written
    assert written[0].split() == fields


# Versions


def test_changelog_and_both_packages_have_one_version() -> None:
    released = re.search(r"^## \[([\d.]+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released
    assert re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", released[2])
    for package in (
        "flask/telemetry/gunicorn_flask_telemetry",
        "nginx/access_exporter/nginx_access_exporter",
    ):
        text = (ROOT / package / "__init__.py").read_text()
        assert re.findall(r'^__version__ = "(.+)"$', text, re.M) == [released[1]]


def test_renovate_follows_every_image_and_every_pinned_file() -> None:
    config = json.loads((ROOT / "renovate.json").read_text())
    (images,) = (each for each in config["customManagers"] if "IMAGE" in each["matchStrings"][0])
    assert images["managerFilePatterns"] == [r"/^\.env$/"]
    pattern = images["matchStrings"][0].replace("(?<", "(?P<")
    env = (ROOT / ".env").read_text()
    found = {f"{each['depName']}:{each['currentValue']}" for each in re.finditer(pattern, env)}
    assert found == {value for name, value in settings_of(env).items() if name.endswith("_IMAGE")}
    compiled = re.compile(config["pip-compile"]["managerFilePatterns"][0].strip("/"))
    assert {
        named(path) for path in tracked("*requirements.txt") if compiled.search(named(path))
    } == {named(path.with_suffix(".txt")) for path in tracked("*requirements.in")}


@pytest.mark.parametrize("path", tracked("*requirements.in"), ids=named)
def test_renovate_can_run_the_command_in_the_header_of_a_pinned_file(path: Path) -> None:
    """Its pip-compile manager accepts no other command than these tools', and few options."""
    header = path.with_suffix(".txt").read_text().splitlines()[1]
    command, *words = header.removeprefix("#    ").split()
    assert [command, *words[:2]] == ["uv", "pip", "compile"]
    options = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
    assert options <= {"--generate-hashes", "--universal", "--python-version", "--output-file"}
    assert [word for word in words[2:] if not word.startswith("-")] == [path.name]


def test_renovate_follows_the_version_of_compose() -> None:
    (found,) = (
        re.findall(each["matchStrings"][0].replace("(?<", "(?P<"), (ROOT / ".ci/run").read_text())
        for each in json.loads((ROOT / "renovate.json").read_text())["customManagers"]
        if each["managerFilePatterns"] == [r"/^\.ci/run$/"]
    )
    assert len(found) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", found[0])


def settings_of(env: str) -> dict[str, str]:
    """The variables that a text in the form of `.env` sets."""
    return dict(re.findall(r"^(\w+)=(.*)$", env, re.M))


# Wording: a pattern, and what to write instead.
BANNED = {
    r"(?<!pytest\.)\bmarks?\b(?!=)": "annotation (of a dashboard), marker (of pytest), stamp",
    r"\bboards?\b": "dashboard",
    r"\btiles?\b": "stat",
    r"\bleftovers?\b": "orphaned processes, or what remains",
    r"\bwhoever\b": "everyone who, every peer that",
    r"\bwhat (is|was) (not )?there\b": "name the thing",
    r"\bwhat there is\b": "name the thing",
    r"(?<!each )\bof which\b": "name the thing, or start a new sentence",
    r"\bthat much (of|longer|later|more|less)\b|\bso much a\b": "name the amount",
    r"\btwo by two\b|\b(in|by) turns\b": "alternately",
    r"\bas (it|they) (stands?|comes?)\b": "unchanged, as shipped",
    r"\bstays? as (it|they) (is|are|was|were)\b": "does not change",
    r"\bleaves? alone\b": "does not kill, does not change",
    r"\btakes? the word\b": "trusts",
    r"\b(is|are|was|were) believed\b": "is trusted",
    r"\bto be had\b": "available",
    r"\btells? of\b|\bspeaks? of\b": "says, reports, covers",
    r"\bhears? of\b": "is notified of",
    r"\btold apart\b": "distinguished",
    r"\b(has|have|had) (a|no) say\b": "takes part, decides, involves",
    r"\b(is|are|was|were) asked of\b": "gets the request",
    r"\b(is|are|was|were) owed\b": "name what should have come",
    r"\ball (is|was) well\b|\bis all well\b": "everything works",
    r"\btakes? nothing\b": "loses nothing, changes nothing",
    r"\bbegins? so\b": "begins with X",
    r"\bunless given\b": "default: X",
    r"\bone'?s[ _]own\b|_ones_own": "a user's, your own",
    r"\bborn\b": "appears, starts",
    r"\bout of Prometheus\b": "from Prometheus",
    r"\bby way of\b": "through",
    r"\bfor ever\b": "forever, or say how long",
}
# Not read: this file contains the patterns, and tools make the lock files and pictures.
UNREAD = re.compile(r"requirements\.txt$|\.png$|^LICENSE$|^tests/config/test_documents\.py$")


@pytest.mark.parametrize("pattern", BANNED)
def test_banned_words_are_kept_out(pattern: str) -> None:
    offenders = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in tracked()
        if not UNREAD.search(named(path))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line, re.I)
    ]
    assert not offenders, f"instead: {BANNED[pattern]}\n" + "\n".join(offenders)
