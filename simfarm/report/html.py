"""The report of a run: report.md, a self-contained report.html, figures, and the table of methods as LaTeX."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path

from simfarm.report import contents, findings
from simfarm.report.data import RunData, open_run
from simfarm.report.examples import examples
from simfarm.report.figures import Plot, inline_svg, save
from simfarm.report.markdown import markdown_report
from simfarm.report.panels import all_plots
from simfarm.report.tabulate import Table, to_csv, to_html, to_latex

HERE = Path(__file__).parent


def write_report(folder: Path) -> None:
    """Write report.md, report.html, figures/*.svg and *.png, tables/*.csv and *.tex of the run in `folder`.

    Everything is read from the run directory; the same files give the same bytes.

    Raises:
        RunError: The folder holds no run, or one without win rates.
        DataError: A table of the run is broken.
    """
    run = open_run(folder)
    plots = all_plots(run)
    for plot in plots:
        save(plot, folder / "figures")
    for name, table in contents.tables(run).items():
        write_text(folder / "tables" / f"{name}.csv", to_csv(table))
        write_text(folder / "tables" / f"{name}.tex", to_latex(table))
    write_text(folder / "report.md", markdown_report(run, plots))
    write_text(folder / "report.html", page(run, plots))


def write_text(path: Path, text: str) -> None:
    """Write a page or a table of text, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    # a lone surrogate in a name has no UTF-8; a reference is what both HTML and Markdown can hold instead
    partial.write_bytes(text.encode("utf-8", "xmlcharrefreplace"))
    partial.replace(path)


def page(run: RunData, plots: list[Plot]) -> str:
    """Return the HTML of the report; it loads nothing and runs no script but its own."""
    drawn = {plot.name: plot for plot in plots}
    found = findings.conclusions(run)
    slots = {
        "about": prose(about(run)),
        "headline": prose(findings.headline(run)),
        "conclusions": "".join(f"<li>{prose(text)}</li>" for text in found),
        "methods": figure_html(drawn, "win_rates")
        + to_html(contents.methods(run))
        + _details("At equal length", contents.length_controlled(run))
        + _details("Method against method", contents.differences(run)),
        "humans": figure_html(drawn, "humans", "No method of this run has a human score to compare with."),
        "overoptimization": figure_html(drawn, "best_of_n", "This run drew too few samples for a best-of-n curve.")
        + (figure_html(drawn, "goodhart") + _table(contents.goodhart(run)) if "goodhart" in drawn else ""),
        "reward": figure_html(drawn, "reward_model", "This run trained no reward model.")
        + _table(contents.rewards(run)),
        "training": "".join(figure_html(drawn, name) for name in drawn if name.startswith("training_"))
        or "<p>This run trained no policy.</p>",
        "annotators": figure_html(drawn, "annotators", "This run made no labels for training.")
        + _table(contents.annotators(run))
        + (figure_html(drawn, "disagreement") if "disagreement" in drawn else ""),
        "provenance": to_html(contents.provenance(run))
        + _details("Time of each stage", contents.stages(run))
        + _details("Config", contents.config(run)),
        "examples": examples(run),
    }
    return render("run.html", title(run), slots)


def render(template: str, title: str, slots: dict[str, str]) -> str:
    """Return a page that loads nothing and runs no script but the report's own.

    Args:
        template: File of the page's body, in this folder.
        title: Plain text, for the slot `title` of body and head.
        slots: HTML for the other slots of the body.
    """
    script, shown = (HERE / "report.js").read_text("utf-8"), html.escape(title)
    return fill(
        (HERE / "page.html").read_text("utf-8"),
        {
            "title": shown,
            "policy": _policy(script),
            "style": (HERE / "report.css").read_text("utf-8"),
            "body": fill((HERE / template).read_text("utf-8"), {"title": shown, **slots}),
            "script": script,
        },
    )


def fill(template: str, slots: dict[str, str]) -> str:
    """Put texts into the `{{slots}}` of a template in one pass, so that no text is read as a template itself."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template)


def _policy(script: str) -> str:
    """Return the page's content security policy: nothing is fetched, and no script runs but the one given."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def prose(text: str) -> str:
    """Escape a sentence for HTML, and keep a number and its percent sign on one line."""
    return html.escape(text).replace(" %", "&nbsp;%")


def title(run: RunData) -> str:
    """Return the report's title."""
    return f"simfarm: {run.setting('name')}, seed {run.setting('seed')}"


def about(run: RunData) -> str:
    """Say in a line what was run."""
    parts = [
        run.setting("description"),
        f"Policy {run.setting('policy.model')}, labels by {run.setting('annotation.pool')} with "
        f"{100 * float(run.setting('annotation.flip') or 0):.0f} % flips, evaluation by "
        f"{run.setting('evaluation.pool')} without noise.",
        f"{sum(run.seconds.values()) / 60:.1f} minutes." if run.seconds else "",
    ]
    return " ".join(part for part in parts if part)


def figure_html(drawn: dict[str, Plot], name: str, absent: str = "") -> str:
    """Return a figure with its caption, or a sentence where it was not drawn."""
    if name not in drawn:
        return f"<p>{html.escape(absent)}</p>"
    plot = drawn[name]
    return (
        f'<figure><div class="scroll" tabindex="0" role="img" aria-label="{html.escape(plot.alt)}">'
        f"{inline_svg(plot)}</div><figcaption>{prose(plot.caption)} "
        '<button type="button" class="zoom" aria-pressed="false" hidden>Enlarge</button></figcaption></figure>'
    )


def _table(table: Table | None) -> str:
    return "" if table is None else to_html(table)


def _details(summary: str, table: Table | None) -> str:
    return "" if table is None else f"<details><summary>{html.escape(summary)}</summary>{to_html(table)}</details>"
