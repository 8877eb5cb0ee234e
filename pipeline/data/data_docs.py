"""Data Docs as a folder that reads well without a network.

The pages of Great Expectations load their styles, icons, scripts and logo from seven foreign hosts, and its index is empty without
those scripts. Here scripts, links and images are taken out, the few styles needed are put in, and the index is a plain table.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}a{color:#0b57d0}
table{border-collapse:collapse;margin:.5rem 0}td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;vertical-align:top}
thead[hidden]{display:none}.wide{overflow-x:auto}.wide table{min-width:46rem}.pass,.text-success{color:#116329}.fail,.text-danger{color:#b3261e;font-weight:600}
.warn,.text-warning{color:#8a4b00}.badge{background:#eaeef2;border-radius:3px;padding:0 .3rem}
.note{color:#57606a}.banner{padding:.6rem .9rem;border-left:.3rem solid}.go{background:#e6f4ea;border-color:#116329}.stop{background:#fdeceb;border-color:#b3261e}
.figure{text-align:right;font-variant-numeric:tabular-nums}
nav ul,nav ol{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
"""

_REMOVED = (
    re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<(?:link|img)\b[^>]*>", re.IGNORECASE),
    re.compile(r"<style>.*?</style>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<footer>.*?</footer>", re.DOTALL | re.IGNORECASE),
    re.compile(r"<title>\s*</title>"),
    # What only works with the scripts: the filter card and the switch that unfolds further details.
    re.compile(
        r'<div class="card mb-3">\s*<div class="card-header p-2">\s*<strong>Actions</strong>.*?(?=<div class="card d-md-block|</div>\s*</div>\s*<div class="col-md-10)',
        re.DOTALL,
    ),
    re.compile(r"<p class=\"m-0\">\s*<a data-toggle=\"collapse\".*?</p>", re.DOTALL),
    # The time and name of a run are left out, so that equal inputs give equal pages.
    re.compile(r"<tr>(?:(?!</tr>).)*__none__(?:(?!</tr>).)*</tr>", re.DOTALL),
    re.compile(r" / __none__"),
    # The ids of folded parts are random.
    re.compile(r"-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
)
_ICONS = (
    (re.compile(r"<i class=\"fas fa-check-circle[^>]*></i>"), '<span class="pass">pass</span>'),
    (re.compile(r"<i class=\"fas fa-times[^>]*></i>"), '<span class="fail">fail</span>'),
    (re.compile(r"<i class=\"fas fa-exclamation-triangle[^>]*></i>"), '<span class="warn">not evaluated</span>'),
)
_LINKS = (
    (re.compile(r'href="(?:\.\./)+index\.html"'), 'href="../index.html"'),
    (re.compile(r'href="(?:\.\./)+expectations/([^"/]+)"'), r'href="../expectations/\1"'),
)


@dataclass(frozen=True)
class Page:
    """One page: its path below the site's folder, and its HTML."""

    path: str
    html: str


@dataclass(frozen=True)
class SuiteSummary:
    """What the index shows of one suite: `checks` as in the data report, and the suite's two pages."""

    name: str
    rows: int
    checks: Sequence[Mapping[str, Any]]
    expectations: Page
    validation: Page


@dataclass(frozen=True)
class Section:
    """A table of the index beside the checks: (name, figure) lines under a heading, with a sentence on how to read them."""

    heading: str
    sentence: str
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Overview:
    """What the index tells beside the checks: the task's name, and sections about its rows."""

    task: str
    sections: Sequence[Section]


# Name -> its heading, and what the number of its checks is followed by.
_SUITES = {
    "schema": ("Columns of the raw file", ""),
    "raw": ("Rows as they came", " of {:,} rows"),
    "accepted": ("Rows that go on to training", " of {:,} rows"),
    "figures": ("Figures of all accepted rows together", ""),
}
_SEVERITIES = ("critical", "warning", "info")
_MEANING = {
    "critical": "blocks the run",
    "warning": "does not block: the rows behind it are set aside, or the data as a whole deserves a look",
    "info": "is only told; the rows are kept",
}


def write_site(folder: Path, suites: Sequence[SuiteSummary], overview: Overview) -> None:
    """Write `index.html`, `expectations/<suite>.html` and `validations/<suite>.html` into `folder`."""
    for suite in suites:
        for page in (suite.expectations, suite.validation):
            path = folder / page.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self_contained(page.html), encoding="utf-8")
    (folder / "index.html").write_text(_index(suites, overview), encoding="utf-8")


def self_contained(html: str) -> str:
    """A page of Great Expectations without anything remote, its icons as words and its links fitted to this site."""
    for pattern in _REMOVED:
        html = pattern.sub("", html)
    for pattern, word in (*_ICONS, *_LINKS):
        html = pattern.sub(word, html)
    return html.replace("</head>", f"<style>{STYLE}</style></head>", 1)


def _index(suites: Sequence[SuiteSummary], overview: Overview) -> str:
    checks = [check for suite in suites for check in suite.checks]
    title = f"Data contract of {overview.task}"
    body = _verdict(checks) + _attention(checks) + "".join(map(_section, overview.sections)) + "".join(map(_suite_table, suites))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _verdict(checks: Sequence[Mapping[str, Any]]) -> str:
    failed = {severity: sum(not check["success"] and check["severity"] == severity for check in checks) for severity in _SEVERITIES}
    blocked = failed["critical"]
    counts = ", ".join(f"{n} {severity}" for severity, n in failed.items() if n) or "none"
    sentence = "The run is blocked: no prompt is tuned on these rows." if blocked else "The accepted rows go on to training."
    style = "banner stop" if blocked else "banner go"
    return f'<p class="{style}"><strong>{sentence}</strong> {len(checks)} checks were made; failed: {counts}.</p>'


def _attention(checks: Sequence[Mapping[str, Any]]) -> str:
    """Every failed check in the order of severity, with what to do."""
    failed = sorted((check for check in checks if not check["success"]), key=lambda check: _SEVERITIES.index(check["severity"]))
    if not failed:
        return "<h2>What needs attention</h2><p>Nothing: every check passed.</p>"
    rows = "".join(
        f'<tr class="failed"><td class="{_style(check)}">{check["severity"]}</td>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in (_where(check), check["expected"], _found(check), check["fix"]))
        + "</tr>"
        for check in failed
    )
    met = [severity for severity in _SEVERITIES if any(check["severity"] == severity for check in failed)]
    meaning = "; ".join(f"{severity} {_MEANING[severity]}" for severity in met)
    return (
        f'<h2>What needs attention</h2><p>{escape(meaning[0].upper() + meaning[1:])}.</p><div class="wide"><table><thead><tr><th>Severity</th>'
        f"<th>Where</th><th>Expected</th><th>Found</th><th>What to do</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _section(section: Section) -> str:
    lines = "".join(f"<tr><td>{escape(name)}</td><td class=figure>{escape(figure)}</td></tr>" for name, figure in section.lines)
    return f"<h2>{escape(section.heading)}</h2><p>{escape(section.sentence)}</p><table><tbody>{lines}</tbody></table>"


def _suite_table(suite: SuiteSummary) -> str:
    heading, unit = _SUITES.get(suite.name, (suite.name, ""))
    rows = "".join(_check_row(check) for check in suite.checks)
    count = f"{len(suite.checks)} check{'' if len(suite.checks) == 1 else 's'}{unit.format(suite.rows)}"
    return (
        f"<h2>{escape(heading)}: {count}</h2>"
        f'<p><a href="{suite.validation.path}">Results</a> and <a href="{suite.expectations.path}">expectations</a> by Great Expectations</p>'
        '<div class="wide"><table><thead><tr><th>Verdict</th><th>Severity</th><th>Column</th><th>Expected</th><th>Observed</th><th>Source rows</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _check_row(check: Mapping[str, Any]) -> str:
    style, verdict = ("pass", "pass") if check["success"] else (_style(check), "fail")
    cells = (check["severity"], check["column"] or "", check["expected"], check["observed"], ", ".join(map(str, check["source_rows"])))
    return f'<tr><td class="{style}">{verdict}</td>' + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _style(check: Mapping[str, Any]) -> str:
    return {"critical": "fail", "warning": "warn"}.get(check["severity"], "note")


def _where(check: Mapping[str, Any]) -> str:
    return f"{check['suite']}: {check['column']}" if check["column"] else str(check["suite"])


def _found(check: Mapping[str, Any]) -> str:
    rows = ", ".join(map(str, check["source_rows"]))
    return f"{check['observed']}; among them source rows {rows}" if rows else str(check["observed"])
