"""AlpacaEval 2's length-controlled win rate, exactly as alpaca_eval computes it (Dubois et al. 2024; glm_winrate.py).

Per model, on its rows and those of two "gamed" baselines (told to be verbose and concise):

    logit P(model wins) = a tanh(d) + b difficulty + c [row is the model's],    d = (len_baseline - len_model) / sd

with an L1 penalty |a|+|b|+|c| over C, model rows of weight 1 and gamed rows of weight 0.1. The length-controlled win
rate is 100 mean_i sigmoid(b difficulty_i + c). `length_control` has simfarm's own, which needs none of these tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from simfarm.errors import DataError, UnknownNameError
from simfarm.evaluation.labels import against, check_battles, choose_baseline
from simfarm.evaluation.logistic import fit_logistic, softplus, without_each_fold

Floats = NDArray[np.float64]
GAMED_WEIGHT = 0.1
PENALTIES = np.logspace(-4, 4, 10)
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Weights:
    """Coefficients of the model: of tanh(d), of the difficulty, and the intercept."""

    a: float
    b: float
    c: float


@dataclass(frozen=True, slots=True)
class GamedRows:
    """The rows of the gamed baselines, as alpaca_eval's df_gamed.csv holds them."""

    length: Floats
    """(m,) tanh(d)."""
    difficulty: Floats
    """(m,)."""
    score: Floats
    """(m,) preference for the gamed baseline, in [0, 1]."""

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> GamedRows:
        """Make the rows from alpaca_eval's df_gamed.csv: std_delta_len, instruction_difficulty, preference."""
        numbers = table[["std_delta_len", "instruction_difficulty", "preference"]].to_numpy(float)
        return cls(np.tanh(numbers[:, 0]), numbers[:, 1], numbers[:, 2] - 1)


def scaled_length(len_model: Floats, len_baseline: Floats) -> Floats:
    """Return tanh((len_baseline - len_model) / sd), sd with ddof 1, not centred.

    Raises:
        DataError: All differences are equal; alpaca_eval would divide by zero.
    """
    gap = np.asarray(len_baseline, float) - np.asarray(len_model, float)
    spread = gap.std(ddof=1) if len(gap) > 1 else 0.0
    if spread == 0:
        raise DataError(
            f"All {len(gap)} length differences are {gap[0] if len(gap) else 'missing'}: the length term has no "
            "spread, and AlpacaEval's model is not defined. Use the plain win rate."
        )
    return np.asarray(np.tanh(gap / spread), float)


def length_controlled(weights: Weights, difficulty: Floats) -> tuple[float, float]:
    """Return the length-controlled win rate and AlpacaEval's `lc_standard_error`, both in percent.

    The second is 100 sd(sigmoid) / sqrt(n), the spread over instructions of the fitted probabilities. It is not a
    sampling error: it leaves out that a, b and c are estimated (0.59 against 1.37 by bootstrap for one model).

    Args:
        weights: Of the model; published or from `fit`.
        difficulty: (n,) of the instructions that the model has, matched by instruction. alpaca_eval matches by row
            number, so that after a missing row every difficulty is that of the row before (`shifted_difficulty`).
    """
    p = 100 * expit(weights.c + weights.b * np.asarray(difficulty, float))
    return float(p.mean()), float(p.std(ddof=1) / np.sqrt(len(p)))


def shifted_difficulty(difficulty: Floats, present: Floats) -> Floats:
    """Return the difficulties that alpaca_eval looks up where rows are missing: the first n of the table, in order.

    Args:
        difficulty: (instructions,) the whole table.
        present: (instructions,) true where the model has a row.
    """
    return np.asarray(difficulty, float)[: int(np.sum(present))]


def fit(
    score: Floats, length: Floats, difficulty: Floats, gamed: GamedRows, *, inverse_penalty: float | None = None
) -> Weights:
    """Fit a, b and c from verdicts.

    Args:
        score: (n,) preference - 1.
        length: (n,) from `scaled_length`.
        difficulty: (n,) by instruction.
        gamed: The gamed baselines' rows.
        inverse_penalty: C. Left out, it is chosen as alpaca_eval does: 5 folds of rows, 10 values from 1e-4 to 1e4,
            least mean held-out log loss.
    """
    n, m = len(score), len(gamed.score)
    x = np.zeros((n + m, 3))
    x[:n, 0], x[:n, 1], x[:n, 2] = length, difficulty, 1
    x[n:, 0], x[n:, 1] = gamed.length, gamed.difficulty
    y = np.concatenate([score, gamed.score])
    weight = np.repeat([1.0, GAMED_WEIGHT], [n, m])
    if inverse_penalty is not None:
        return Weights(*map(float, fit_logistic(x, y, weight[:, None], lasso=1 / inverse_penalty)[0]))
    k = len(PENALTIES)
    # from a middling penalty it is not far to the others
    middle = fit_logistic(x, y, weight[:, None], lasso=1 / PENALTIES[k // 2], tolerance=0.1)
    whole = fit_logistic(x, y, np.tile(weight[:, None], k), lasso=1 / PENALTIES, start=middle)
    # GroupKFold of groups of equal size deals them out from the last to the first
    fold = np.arange(n + m)[::-1] % FOLDS
    train = weight[:, None] * (fold[:, None] != np.arange(FOLDS))
    start, lasso = without_each_fold(x, y, weight, fold, whole, 1 / PENALTIES), np.tile(1 / PENALTIES, FOLDS)
    # these coefficients serve to compare losses only
    beta = fit_logistic(x, y, np.repeat(train, k, axis=1), lasso=lasso, start=start.reshape(-1, 3), tolerance=1e-3)
    beta = beta.reshape(FOLDS, k, 3)
    loss = np.zeros(k)
    for f in range(FOLDS):
        held = fold == f
        eta = beta[f] @ x[held].T
        loss += (softplus(eta) - y[held] * eta) @ weight[held] / held.sum()
    return Weights(*map(float, whole[loss.argmin()]))


def length_controlled_table(
    labels: pd.DataFrame,
    difficulty: pd.DataFrame,
    *,
    baseline: str | None = None,
    gamed: GamedRows | None = None,
    weights: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compute AlpacaEval 2's length-controlled win rate of each generator, difficulty matched by instruction.

    Args:
        labels: With generator_1 and generator_2.
        difficulty: Columns instruction, difficulty.
        baseline: As for `winrate.win_rates`.
        gamed: The gamed baselines' rows, to fit the model.
        weights: Or published coefficients: generator (or model), a, b, c.

    Returns:
        One row per generator, best first: generator, baseline, lc_win_rate and published_error (percent; see
        `length_controlled`), a, b, c. Missing for a generator without published coefficients.

    Raises:
        DataError: A table is not what it should be, or an instruction has no difficulty.
        UnknownNameError: There is no such baseline, or no generator has published coefficients.
    """
    if (gamed is None) == (weights is None):
        raise DataError("Give either the gamed rows, to fit the model, or published weights.")
    labels = check_battles(labels)
    baseline = choose_baseline(labels, baseline)
    table = against(labels, baseline)
    table = table[table["score"].notna()]
    known = difficulty.drop_duplicates("instruction").set_index("instruction")["difficulty"]
    table = table.assign(difficulty=table["instruction"].map(known))
    lacking = table["difficulty"].isna()
    if lacking.any():
        raise DataError(
            f"{table.loc[lacking, 'instruction'].nunique()} instructions have no difficulty, the first "
            f"{table.loc[lacking, 'instruction'].iloc[0][:60]!r}. AlpacaEval's model is defined for its own 805 "
            "instructions; use simfarm's for others (--length-controlled)."
        )
    published = None
    if weights is not None:
        published = weights.set_index("generator" if "generator" in weights.columns else "model")
        if not table["generator"].isin(published.index).any():
            raise UnknownNameError(
                "generator with published weights", str(table["generator"].iloc[0]), map(str, published.index)
            )
    rows = []
    for name, mine in table.groupby("generator", sort=True):
        delta = mine["difficulty"].to_numpy(float)
        if published is None:
            assert gamed is not None
            lengths = scaled_length(mine["length"].to_numpy(float), mine["baseline_length"].to_numpy(float))
            model = fit(mine["score"].to_numpy(float), lengths, delta, gamed)
        elif name in published.index:
            model = Weights(*map(float, published.loc[name, ["a", "b", "c"]].to_numpy(float)))
        else:
            rows.append((str(name), baseline, *[np.nan] * 5))
            continue
        value, error = length_controlled(model, delta)
        rows.append((str(name), baseline, value, error, model.a, model.b, model.c))
    columns = ["generator", "baseline", "lc_win_rate", "published_error", "a", "b", "c"]
    result = pd.DataFrame(rows, columns=columns)
    return result.sort_values("lc_win_rate", ascending=False, kind="stable").reset_index(drop=True)
