"""Calibrate pools to real people's votes: `python -m benchmarks.calibration [--data FOLDER] [POOL …]`, some minutes.

Three pools, each before and after, on pairs the fit had not seen (5 folds of instructions):

* `pandalm`: the pool embedded and PandaLM's people, to whom its members were fitted in the first place;
* `prd`: the pool embedded and PRD's people, whom it has never met;
* `judges`: PRD's five judges as a pool of hard verdicts, as prompted pools give them, and PRD's people.

FOLDER holds judge_items.parquet, judge_votes.parquet and human_votes.parquet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from simfarm.annotators.calibration import calibrate_pool
from simfarm.evaluation.calibration import Calibration, calibrate
from tests.evaluation_data import judges_as_pool, votes

KEPT = ["instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference"]


def show(title: str, fit: Calibration) -> None:
    """Print what was fitted and the figures on unseen pairs."""
    print(f"\n{title}: {fit.n_votes} votes on {fit.n_items} pairs")
    for row in fit.held_out.to_dict("records"):
        digits = 4 if "nats" in row["figure"] else 1
        cells = [
            f"{name} {row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
            for name in ("humans", "before", "after", "change")
            if np.isfinite(row[name])
        ]
        print(f"  {row['figure']:34} {'  '.join(cells)}")
    for row in fit.parameters.to_dict("records"):
        print(f"  {row['parameter']:34} {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
              f"  prior {row['prior']:.3f}  from the data {100 * row['from_data']:.0f}%")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("pools", nargs="*", default=["judges", "pandalm", "prd"])
    arguments = parser.parse_args()
    for name in arguments.pools:
        if name == "judges":
            show("PRD's five judges and PRD's people", calibrate(*judges_as_pool(arguments.data)))
        else:
            human = votes(arguments.data, name)[2]
            columns = [*KEPT, *(["order"] if "order" in human and human["order"].notna().all() else [])]
            show(f"the pool embedded and the people of {name}", calibrate_pool("embedded", human[columns]).fit)


if __name__ == "__main__":
    main()
