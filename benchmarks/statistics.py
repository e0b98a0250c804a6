"""Time simfarm's statistics beside other packages', and measure how often intervals cover: one table per command.

    python -m benchmarks.statistics speed [--peer-python PATH …] [--data FOLDER]
    python -m benchmarks.statistics coverage [--runs 1000] [--of correlations]

`speed` needs an interpreter with the peers: `python -m venv peers`, peers/bin/pip install evalica arena-rank pyarrow
alpaca_eval, then --peer-python peers/bin/python (repeated, where they need several environments); without it the
present one is asked. A peer that is not installed, or does not run, is left out with the reason. Peers fit one resample
at a time, so a few fits are timed and multiplied. Times are of the processor, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# before numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.special import expit

BATTLES, MODELS, INSTRUCTIONS, DRAWS = 100_000, 100, 2_000, 1_000

EVALICA = """
import sys, time, json, pandas as pd, evalica, numpy as np
t = pd.read_parquet(sys.argv[1])
w = t["winner"].map({1: evalica.Winner.X, 2: evalica.Winner.Y, 0: evalica.Winner.Draw})
times = []
for k in range(4):
    rows = np.random.default_rng(k).integers(0, len(t), len(t))
    x, y, z = (c.iloc[rows].reset_index(drop=True) for c in (t["a"], t["b"], w))
    s = time.process_time(); evalica.bradley_terry(x, y, z); times.append(time.process_time() - s)
print(json.dumps(min(times[1:])))
"""

ARENA_RANK = """
import sys, time, json, pandas as pd
from arena_rank.utils.data_utils import PairDataset
from arena_rank.models.bradley_terry import BradleyTerry
t = pd.read_parquet(sys.argv[1])
names = {1: "model_a", 2: "model_b", 0: "tie"}
t = pd.DataFrame({"model_a": t["a"], "model_b": t["b"], "winner": t["winner"].map(names)})
data = PairDataset.from_pandas(t)
model = BradleyTerry(len(data.competitors))
model.fit(data)
s = time.process_time(); model.fit(data); print(json.dumps(time.process_time() - s))
"""


ALPACA_EVAL = """
import importlib.util, json, sys, time, types, warnings
import pandas as pd
warnings.filterwarnings("ignore")
# its package imports every judge's client; the metric alone is wanted
package = types.ModuleType("alpaca_eval")
package.__path__ = list(importlib.util.find_spec("alpaca_eval").submodule_search_locations)
sys.modules["alpaca_eval"] = package
metrics = types.ModuleType("alpaca_eval.metrics")
metrics.__path__ = [package.__path__[0] + "/metrics"]
sys.modules["alpaca_eval.metrics"] = metrics
from alpaca_eval.metrics import glm_winrate
glm_winrate.hf_hub_download = lambda **_: sys.argv[2]
table = pd.read_parquet(sys.argv[1])
groups = [rows.reset_index(drop=True) for _, rows in table.groupby("generator_2")][:6]
times = []
for rows in groups:
    start = time.process_time()
    glm_winrate.get_length_controlled_winrate(rows, save_weights_dir=None)
    times.append(time.process_time() - start)
print(json.dumps(sum(times[1:]) / len(times[1:])))
"""


def tournament(seed: int = 0) -> pd.DataFrame:
    """Draw battles among models of normal strengths, half a tie at equal strength."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1, MODELS)
    one = rng.integers(0, MODELS, BATTLES)
    two = (one + rng.integers(1, MODELS, BATTLES)) % MODELS
    gap = (strength[one] - strength[two]) / 2
    weights = np.stack([np.exp(gap), np.exp(-gap), np.full(BATTLES, 0.7)])
    outcome = (rng.random(BATTLES) > np.cumsum(weights / weights.sum(0), 0)).sum(0)
    return pd.DataFrame(
        {
            "a": [f"m{k:03d}" for k in one],
            "b": [f"m{k:03d}" for k in two],
            "winner": np.array([1, 2, 0])[outcome],
            "instruction": [f"i{k}" for k in rng.integers(0, INSTRUCTIONS, BATTLES)],
        }
    )


def _peer(pythons: list[str], script: str, *arguments: Path) -> float | None:
    """Return the seconds that a script prints, in the first interpreter that has what it needs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    why = ""
    for python in pythons:
        done = subprocess.run(
            [python, "-c", script, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
        )
        if not done.returncode:
            return float(json.loads(done.stdout.strip().splitlines()[-1]))
        why = done.stderr.strip().splitlines()[-1][:150] if done.stderr else "no output"
    print(f"  (left out: {why})")
    return None


def _mean_time(function: Callable[[], object], runs: int = 5) -> float:
    """Return processor seconds per call, after one that is not counted."""
    function()
    start = time.process_time()
    for _ in range(runs):
        function()
    return (time.process_time() - start) / runs


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speed(pythons: list[str], data: Path) -> None:
    from simfarm.evaluation.bradley_terry import battles, bootstrap, fit

    table = tournament()
    labels = pd.DataFrame(
        {
            "instruction": table["instruction"],
            "output_1": "a",
            "output_2": "b",
            "generator_1": table["a"],
            "generator_2": table["b"],
            "preference": table["winner"].map({1: 1.0, 2: 2.0, 0: 1.5}),
            "replicate": np.arange(len(table)),
        }
    )
    print(f"{DRAWS} bootstraps of Bradley–Terry, {BATTLES:,} battles, {MODELS} models, {INSTRUCTIONS:,} instructions")
    start = time.process_time()
    counts = battles(labels, "half")
    fitted = fit(counts)
    before = _memory()
    few = time.process_time()
    bootstrap(counts, fitted, DRAWS // 10)
    after_few = _memory()
    again = time.process_time()
    bootstrap(counts, fitted, DRAWS)
    ours = time.process_time() - again + (few - start)
    print(f"  simfarm, clustered, from the table of labels on: {ours:8.2f} s")
    print(
        f"  peak memory: {before:.0f} MB fitted, {after_few:.0f} MB at {DRAWS // 10} draws, {_memory():.0f} at {DRAWS}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "battles.parquet"
        table.to_parquet(path)
        for name, script in (("evalica", EVALICA), ("arena-rank", ARENA_RANK)):
            one = _peer(pythons, script, path)
            if one is not None:
                whole = DRAWS * one
                print(f"  {name}: {one:.3f} s a fit, {whole:.0f} s for {DRAWS}: {whole / ours:.0f} x simfarm's")
    if data.is_dir():
        _length_control(pythons, data)


def _length_control(pythons: list[str], data: Path) -> None:
    from simfarm.evaluation.alpacaeval import fit, scaled_length
    from simfarm.evaluation.length_control import length_controlled
    from tests.evaluation_data import alpacaeval_gamed, alpacaeval_labels

    folder = data / "alpaca_eval_2"
    labels, gamed = alpacaeval_labels(folder), alpacaeval_gamed(folder)
    difficulty = pd.read_parquet(folder / "instructions.parquet").set_index("instruction")["difficulty"]
    n = labels["generator_2"].nunique()
    print(f"Length-controlled win rates of {n} models on AlpacaEval 2's judgments")
    # the first run of each is not counted, here and there
    ours = _mean_time(lambda: length_controlled(labels))
    print(f"  simfarm's own, with difficulty and sampling errors: {ours:8.2f} s")
    columns = []
    for _, rows in labels.groupby("generator_2"):
        lengths = (rows[c].str.len().to_numpy() for c in ("output_2", "output_1"))
        columns.append((rows["preference"].to_numpy() - 1, scaled_length(*lengths),
                        difficulty.loc[rows["instruction"]].to_numpy()))  # fmt: skip
    exact = _mean_time(lambda: [fit(score, length, delta, gamed) for score, length, delta in columns])
    print(f"  simfarm's exact AlpacaEval model, with its choice of C: {exact:8.2f} s")
    # the verdicts on the gamed baselines are not public: drawn here, which does not matter for the time
    rng = np.random.default_rng(0)
    held = pd.DataFrame(
        {
            "model": "gamed",
            "index": np.tile(np.arange(805), 2),
            "std_delta_len": np.arctanh(np.clip(gamed.length, -1 + 1e-12, 1 - 1e-12)),
            "instruction_difficulty": gamed.difficulty,
            "not_gamed_baseline": False,
            "preference": expit(-1.8 * gamed.length + gamed.difficulty) * rng.random(len(gamed.length)),
        }
    )
    with tempfile.TemporaryDirectory() as folder_:
        table, rows = Path(folder_) / "labels.parquet", Path(folder_) / "df_gamed.csv"
        labels.to_parquet(table)
        held.to_csv(rows, index=False)
        one = _peer(pythons, ALPACA_EVAL, table, rows)
    if one is not None:
        whole = one * n
        print(f"  alpaca_eval: {whole:8.2f} s: {whole / exact:.0f} x exact, {whole / ours:.0f} x own")


def _coverage_of_win_rates(runs: int) -> None:
    """Draw verdicts with effects of instructions and of annotators."""
    from simfarm.evaluation.clustering import clustered_mean, codes

    print(f"95% intervals of a win rate, {runs} data sets each; verdicts of 4 of 20 annotators on each instruction")
    print(f"{'instructions':>12} {'win rate':>9} {'clustered':>10} {'by rows':>9} {'too narrow by':>14}")
    rng = np.random.default_rng(0)
    for n in (30, 100, 400):
        for rate in (0.5, 0.8):
            logit = np.log(rate / (1 - rate))
            taste = rng.normal(0, 0.7, 20)
            grid = logit + rng.normal(0, 1.2, (200_000, 1)) + taste
            truth = float(expit(grid).mean())
            hits = naive = ratio = 0.0
            for _ in range(runs):
                ease = rng.normal(0, 1.2, n)
                who = rng.random((n, 20)).argsort(1)[:, :4]
                score = (rng.random((n, 4)) < expit(logit + ease[:, None] + taste[who])).astype(float).ravel()
                found = clustered_mean(score, np.repeat(np.arange(n), 4), share=True)
                hits += found.ci_low <= truth <= found.ci_high
                se = score.std(ddof=1) / np.sqrt(len(score))
                naive += abs(score.mean() - truth) <= 1.96 * se
                ratio += se / found.standard_error
            print(f"{n:12d} {100 * truth:9.1f} {100 * hits / runs:9.1f}% {100 * naive / runs:8.1f}% "
                  f"{100 * (1 - ratio / runs):13.0f}%")  # fmt: skip
    print("annotators as a sample of others like them (new ones in each data set, 40 of them, each on 1 in 10)")
    hits = fixed = 0.0
    for _ in range(runs):
        taste, ease = rng.normal(0, 0.7, 40), rng.normal(0, 1.0, 100)
        item, who = np.nonzero(rng.random((100, 40)) < 0.1)
        score = (rng.random(len(item)) < expit(ease[item] + taste[who])).astype(float)
        both = clustered_mean(score, codes(item), codes(who), share=True)
        one = clustered_mean(score, codes(item), share=True)
        hits += both.ci_low <= 0.5 <= both.ci_high
        fixed += one.ci_low <= 0.5 <= one.ci_high
    print(f"  clustered both ways {100 * hits / runs:.1f}%, by instruction only {100 * fixed / runs:.1f}%")


def _coverage_of_correlations(runs: int) -> None:
    from simfarm.evaluation.correlation import COEFFICIENTS, coefficient_of
    from simfarm.evaluation.true_scores import true_scores

    print(f"95% intervals of the correlation of true scores, {runs} data sets each, both sides measured with error")
    print(f"{'methods':>8} {'correlation':>12} {'error / sd':>11}" + "".join(f"{c:>10}" for c in COEFFICIENTS))
    rng = np.random.default_rng(3)
    for n, rho, error in (
        (6, 0.98, 0.15),
        (15, 0.98, 0.15),
        (6, 0.5, 0.3),
        (15, 0.6, 0.3),
        (15, 0.6, 0.6),
        (15, 0.0, 0.3),
    ):
        hits = dict.fromkeys(COEFFICIENTS, 0)
        for run in range(runs):
            true, errors = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n), np.full((n, 2), error)
            drawn = true_scores(true + errors * rng.normal(size=(n, 2)), errors, draws_wanted=800, seed=run)
            for c in COEFFICIENTS:
                low, high = np.quantile(coefficient_of(drawn[..., 0], drawn[..., 1], c), [0.025, 0.975])
                # rank coefficients take few values: an end of the interval may be the value itself
                hits[c] += low - 1e-9 <= coefficient_of(true[:, 0], true[:, 1], c) <= high + 1e-9
        print(f"{n:8d} {rho:12.2f} {error:11.2f}" + "".join(f"{100 * h / runs:9.1f}%" for h in hits.values()))


def _coverage_of_ratings(runs: int) -> None:
    from simfarm.evaluation.bradley_terry import battles, fit
    from simfarm.evaluation.clustering import critical_value

    rng = np.random.default_rng(1)
    truth, names, n = np.linspace(-1, 1, 5), [f"m{k}" for k in range(5)], 100
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    hits = rows_hit = 0.0
    # log-odds over all instructions are flatter than those of one: the truth is what many instructions show
    centre = _marginal(truth)
    for _ in range(runs):
        # an instruction favours the first-named side of all its pairs, or the second
        lean = rng.normal(0, 0.7, (n, 5))
        rows = [
            (f"i{i}", names[a], names[b], 2.0 - (rng.random() < expit(truth[a] - truth[b] + lean[i, a] - lean[i, b])))
            for i in range(n)
            for a, b in pairs
        ]
        table = pd.DataFrame(rows, columns=["instruction", "generator_1", "generator_2", "preference"])
        table = table.assign(output_1="u", output_2="v")
        found = fit(battles(table))
        single = fit(battles(table.assign(input=np.arange(len(table)).astype(str))))
        inside = [
            (np.abs(f.theta - centre) <= critical_value(f.n_instructions) * np.sqrt(np.diag(f.covariance))).mean()
            for f in (found, single)
        ]
        hits, rows_hit = hits + inside[0], rows_hit + inside[1]
    print(f"95% intervals of Bradley–Terry ratings, {runs} data sets of {n} instructions x 10 pairs")
    print(f"  clustered sandwich {100 * hits / runs:.1f}%, by rows {100 * rows_hit / runs:.1f}%")


def _marginal(truth: np.ndarray) -> np.ndarray:
    """Return the ratings that a fit tends to, with ever more instructions."""
    from simfarm.evaluation.bradley_terry import battles, fit

    lean = np.random.default_rng(2).normal(0, 0.7, (100_000, 5))
    rows = []
    for a in range(5):
        for b in range(a + 1, 5):
            p = expit(truth[a] - truth[b] + lean[:, a] - lean[:, b]).mean()
            rows += [(f"i{k}", f"m{a}", f"m{b}", 2 - p) for k in range(2)]
    table = pd.DataFrame(rows, columns=["instruction", "generator_1", "generator_2", "preference"])
    return fit(battles(table.assign(output_1="u", output_2="v"))).theta


COVERAGE: dict[str, tuple[int, Callable[[int], None]]] = {
    "win-rates": (1, _coverage_of_win_rates),
    "ratings": (5, _coverage_of_ratings),
    "correlations": (5, _coverage_of_correlations),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--peer-python", action="append", help="May be repeated, where packages do not agree.")
    fast.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    cover = commands.add_parser("coverage")
    cover.add_argument("--runs", type=int, default=1000, help="Data sets; of ratings and correlations a fifth.")
    cover.add_argument("--of", choices=list(COVERAGE), action="append")
    arguments = parser.parse_args()
    if arguments.command == "speed":
        speed(arguments.peer_python or [sys.executable], arguments.data)
    else:
        for name in arguments.of or COVERAGE:
            share, function = COVERAGE[name]
            function(max(arguments.runs // share, 50))


if __name__ == "__main__":
    main()
