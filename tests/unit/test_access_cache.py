"""The exporter's metrics of a cache, and the entries that ./stack purge removes from it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from local.purge import pattern, purge
from local.settings import ROOT, StackError
from nginx_access_exporter import cache as access_cache
from nginx_access_exporter.cache import CacheMetrics, Zone, zones

TEMPLATE = ROOT / "nginx" / "templates" / "flask-app.conf.template"


def entry(folder: Path, number: int, *, age: float = 0, key: str = "httpGETlocalhost/") -> Path:
    """Makes an entry as nginx does with levels=1:2, with its key before the response."""
    name = f"{number:032x}"
    path = folder / name[-1] / name[-3:-1] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\5\0\0\n\0\nKEY: " + key.encode() + b"\nHTTP/1.1 200 OK\r\n\r\nbody\xff\n")
    os.utime(path, (time.time() - age,) * 2)
    return path


def values(metrics: CacheMetrics) -> dict[str, float]:
    """Sample name: value, of a single zone."""
    return {sample.name: sample.value for family in metrics.collect() for sample in family.samples}


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    return Zone("responses", tmp_path, keys_size=10 << 20, max_size=256 << 20, inactive=600)


def test_the_limits_are_those_of_nginx_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGINX_CACHE_DIR", "/cache")
    monkeypatch.setenv("NGINX_CACHE_MAX_SIZE", "1g")
    (zone,) = zones(TEMPLATE.read_text())
    assert (zone.name, zone.path) == ("responses", Path("/cache/responses"))
    assert zone.max_size
    limits = values(CacheMetrics([zone], zone.path))
    assert limits["nginx_cache_keys_capacity"] == 80_000
    assert limits["nginx_cache_max_size_bytes"] == 1 << 30


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("proxy_cache_path /a keys_zone=z:512k;", Zone("z", Path("/a"), 512 << 10, None, 600)),
        (
            "  fastcgi_cache_path '/a b'\n  keys_zone=z:1m\n  max_size=2g inactive=1h30m;",
            Zone("z", Path("/a b"), 1 << 20, 2 << 30, 5400),
        ),
        (
            "proxy_cache_path /a keys_zone=z:1m inactive=90;",
            Zone("z", Path("/a"), 1 << 20, None, 90),
        ),
        (
            'uwsgi_cache_path /a keys_zone=z:1m "inactive=1d 2h";',
            Zone("z", Path("/a"), 1 << 20, None, 93600),
        ),
    ],
)
def test_a_directive_is_read_as_nginx_reads_it(directive: str, expected: Zone) -> None:
    assert zones(f"http {{\n# proxy_cache_path /no keys_zone=no:1m;\n{directive} # why\n}}") == [
        expected
    ]


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        (
            "proxy_cache_path ${MISSING}/a keys_zone=z:1m;",
            r"\$\{MISSING\} .* not in the environment",
        ),
        ("proxy_cache_path /a max_size=1m;", "keys_zone"),
        ("proxy_cache_path /a keys_zone=z:much;", "not a size: 'much'"),
        ("proxy_cache_path /a keys_zone=z:1m inactive=soon;", "not a time: 'soon'"),
    ],
)
def test_a_directive_that_is_not_understood_is_refused(directive: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zones(directive)


def test_entries_are_counted_and_files_being_written_are_not(zone: Zone) -> None:
    metrics = CacheMetrics([zone], zone.path)
    metrics.update()
    assert values(metrics)["nginx_cache_entries"] == 0
    assert "nginx_cache_oldest_entry_age_seconds" not in values(metrics)
    for number in range(100):
        entry(zone.path, number, age=number)
    written = entry(zone.path, 100)
    written.rename(written.with_suffix(".0000000001"))
    metrics.update()
    found = values(metrics)
    assert found["nginx_cache_entries"] == 100
    assert found["nginx_cache_size_bytes"] == 100 * written.parent.stat().st_blksize
    assert found["nginx_cache_oldest_entry_age_seconds"] == pytest.approx(99, abs=30)


@pytest.mark.parametrize(("state", "writable"), [("on", 1), ("off", 0)])
def test_the_watchers_file_says_whether_the_cache_can_be_written(
    zone: Zone, tmp_path: Path, state: str, writable: int
) -> None:
    metrics = CacheMetrics([zone], tmp_path)
    assert not {"nginx_cache_writable", "nginx_cache_write_age_seconds"} & values(metrics).keys()
    file = tmp_path / f"{zone.name}.cache-{state}"
    file.touch()
    os.utime(file, times=(time.time() - 99,) * 2)
    found = values(metrics)
    assert found["nginx_cache_writable"] == writable
    assert found["nginx_cache_write_age_seconds"] == pytest.approx(99, abs=30)


def test_young_entries_that_vanish_are_evictions(zone: Zone) -> None:
    metrics = CacheMetrics([zone], zone.path)
    young = [entry(zone.path, number, age=60) for number in range(10)]
    old = [entry(zone.path, number, age=700) for number in range(10, 20)]
    metrics.update()
    for path in (*young[:3], *old[:5]):
        path.unlink()
    entry(zone.path, 3)  # replaced
    metrics.update()
    assert values(metrics)["nginx_cache_evictions_total"] == 3
    metrics.update()
    assert values(metrics)["nginx_cache_evictions_total"] == 3


def test_a_cache_that_cannot_be_scanned_has_only_its_limits(
    zone: Zone, caplog: pytest.LogCaptureFixture
) -> None:
    entry(zone.path, 1)
    metrics = CacheMetrics([zone._replace(path=zone.path / "missing")], zone.path)
    metrics.update()
    assert set(values(metrics)) == {"nginx_cache_keys_capacity", "nginx_cache_max_size_bytes"}
    assert not caplog.records  # nginx makes it when it starts
    metrics = CacheMetrics([zone._replace(path=zone.path / "1" / "00" / f"{1:032x}")], zone.path)
    metrics.update()
    metrics.update()
    assert ["can't scan the cache responses" in it.getMessage() for it in caplog.records] == [True]


def test_scans_take_at_most_one_percent_of_a_core(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    cpu = iter([10.0, 12.0, 12.0, 12.001])
    monkeypatch.setattr(access_cache.time, "thread_time", lambda: next(cpu))

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise StopIteration

    monkeypatch.setattr(access_cache.time, "sleep", sleep)
    with pytest.raises(StopIteration):
        CacheMetrics([zone], zone.path)._run()
    assert pauses == [198, access_cache.SECONDS_BETWEEN_SCANS]


KEYS = (
    "httpGETlocalhost/",
    "httpGETlocalhost:8080/reports/1?page=2",
    "httpHEADlocalhost/reports/2",
    "httpGETother.example/reports",
    "httpGETlocalhost/x/reports/3",
    "httpGETlocalhost/a.b*c[d]$",
    "httpGETlocalhost/aXbc",
)


@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("", set(KEYS)),
        ("/", set(KEYS)),
        ("/reports/", {KEYS[1], KEYS[2]}),
        ("/reports", {KEYS[1], KEYS[2], KEYS[3]}),
        ("/reports/1?page=2", {KEYS[1]}),
        ("/a.b*c[d]$", {KEYS[5]}),
        ("/missing", set()),
    ],
)
def test_purge_removes_the_entries_below_a_path(
    tmp_path: Path, prefix: str, removed: set[str]
) -> None:
    paths = {key: entry(tmp_path, number, key=key) for number, key in enumerate(KEYS)}
    other = tmp_path / "temporary"
    other.write_text("KEY: httpGETlocalhost/reports/\n")
    assert purge(prefix, ["sh"], {"NGINX_CACHE_DIR": str(tmp_path)}) == len(removed)
    assert {key for key, path in paths.items() if not path.exists()} == removed
    assert other.exists()


def test_purge_counts_many_entries(tmp_path: Path) -> None:
    for number in range(1200):
        entry(tmp_path, number)
    assert purge("", ["sh"], {"NGINX_CACHE_DIR": str(tmp_path)}) == 1200


def test_purge_refuses_a_prefix_that_is_not_a_path_and_a_missing_cache(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="does not begin with /"):
        pattern("reports")
    with pytest.raises(StackError, match="could not be purged"):
        purge("", ["sh"], {"NGINX_CACHE_DIR": str(tmp_path / "missing")})
