"""The report as Markdown, to paste into an issue or a README; figures are linked from figures/*.png."""

from __future__ import annotations

from simfarm.report import contents, findings
from simfarm.report.data import RunData
from simfarm.report.figures import Plot
from simfarm.report.tabulate import Table, markdown_text, to_markdown

TITLES = {
    "win_rates": "Methods",
    "humans": "Against humans",
    "best_of_n": "Over-optimization",
    "goodhart": "Proxy, judge and gold",
    "reward_model": "Reward model",
    "training_losses": "Training losses",
    "annotators": "Annotators",
    "disagreement": "Disagreement of annotators",
}


def markdown_report(run: RunData, plots: list[Plot]) -> str:
    """Return the report as Markdown."""
    tables: dict[str, list[Table | None]] = {
        "win_rates": [contents.methods(run), contents.length_controlled(run), contents.differences(run)],
        "goodhart": [contents.goodhart(run)],
        "reward_model": [contents.rewards(run)],
        "annotators": [contents.annotators(run)],
    }
    parts = [
        f"# simfarm: {markdown_text(str(run.setting('name')))}, seed {run.setting('seed')}",
        f"**{markdown_text(findings.headline(run))}**",
        "\n".join(f"- {markdown_text(text)}" for text in findings.conclusions(run)),
    ]
    for plot in plots:
        parts += [f"## {title_of(plot)}", f"![{markdown_text(plot.alt)}](figures/{plot.name}.png)"]
        parts.append(markdown_text(plot.caption))
        parts += [to_markdown(table) for table in tables.get(plot.name, []) if table is not None]
    parts += ["## Provenance", to_markdown(contents.provenance(run))]
    if (stages := contents.stages(run)) is not None:
        parts.append(to_markdown(stages))
    return "\n\n".join(part for part in parts if part) + "\n"


def title_of(plot: Plot) -> str:
    """Return the heading of a figure; a method's training curves are headed by its name."""
    name = plot.name.removeprefix("training_")
    return TITLES.get(plot.name) or f"Training of {markdown_text(name)}"
