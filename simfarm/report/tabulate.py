"""A table of the report, written once and rendered as HTML, Markdown or LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | float | int | None
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its header, and how its numbers are written (a format such as ".1f"); texts have no format."""

    header: str
    format: str = ""

    def text(self, cell: Cell) -> str:
        """Return a cell as text; what is missing is a dash."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return MISSING
        return cell if isinstance(cell, str) else format(cell, self.format)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows, with a caption that says what the table is and in which units."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> list[list[str]]:
        """Return the rows as texts."""
        return [[column.text(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]


def to_html(table: Table) -> str:
    """Render a table as HTML; headers are buttons that sort, and numbers keep their full value for it."""
    heads = "".join(
        f'<th scope="col"{_number(column)}><button type="button">{html.escape(column.header)}</button></th>'
        for column in table.columns
    )
    rows = []
    for cells, texts in zip(table.rows, table.texts(), strict=True):
        parts = [f'<th scope="row">{html.escape(texts[0])}</th>']
        for column, cell, text in zip(table.columns[1:], cells[1:], texts[1:], strict=True):
            value = f' data-value="{float(cell)!r}"' if isinstance(cell, float | int) and text != MISSING else ""
            parts.append(f"<td{_number(column)}{value}>{html.escape(text)}</td>")
        rows.append(f"<tr>{''.join(parts)}</tr>")
    return (
        f'<p class="caption">{html.escape(table.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.caption)}">'
        f"<table><thead><tr>{heads}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(column: Column) -> str:
    return ' class="number"' if column.format else ""


def to_csv(table: Table) -> str:
    """Render a table as CSV with numbers in full; what is missing is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.header for column in table.columns])
    for row in table.rows:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Render a table as GitHub's Markdown."""
    rules = ["---:" if column.format else "---" for column in table.columns]
    rows = [[column.header for column in table.columns], rules, *table.texts()]
    # the rule's own dashes and colons are not escaped
    lines = [
        f"| {' | '.join(row if i == 1 else [markdown_text(cell) for cell in row])} |" for i, row in enumerate(rows)
    ]
    return f"{markdown_text(table.caption)}\n\n" + "\n".join(lines)


def markdown_text(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", " ".join(text.split()))


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "≥": r"$\geq$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """Render a table as LaTeX with the rules of the package booktabs."""
    spec = "".join("r" if column.format else "l" for column in table.columns)
    lines = [[column.header for column in table.columns], *table.texts()]
    head, *body = [" & ".join(map(latex_text, line)) + r" \\" for line in lines]
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex_text(table.caption)}}}\n"
        f"\\begin{{tabular}}{{{spec}}}\n{inner}\n\\end{{tabular}}\n\\end{{table}}\n"
    )
