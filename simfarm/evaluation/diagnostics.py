"""`simfarm diagnose`: how far a pool and its members can be trusted, against human labels of the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from simfarm.errors import DataError, UnknownNameError
from simfarm.evaluation.agreement import (
    Floats,
    Ints,
    agreement,
    alpacaeval_agreement,
    alpacaeval_bias,
    alpacaeval_leave_one_out,
    alpacaeval_variance,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
)
from simfarm.evaluation.clustering import Estimate, clustered_mean, codes, holm
from simfarm.evaluation.dawid_skene import FEWEST, dawid_skene
from simfarm.evaluation.items import Aligned, align, item_style
from simfarm.evaluation.tastes import (
    LENGTH_GAP,
    NOTHING,
    excess,
    order_consistency,
    position_effect,
    prefers,
    prefers_first,
    self_preference,
)

POOL, POOL_MAJORITY, HUMANS = "(pool: a member)", "(pool: majority)", "(humans)"
NULL_JUDGES = ("(longest)", "(first)", "(random)")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` finds. Shares and differences are in percent; each has `_low` and `_high`, its interval."""

    agreement: pd.DataFrame
    """Per annotator, for the pool, the humans and null judges: annotator, n_labels, n_null, null_rate; agreement
    with a human vote, also without ties and with the majority of the humans; kappa with that majority; AlpacaEval's
    agreement, bias and variance; reliability (Dawid–Skene, without the humans)."""
    tastes: pd.DataFrame
    """Per annotator, for the humans and null judges: tie_rate, prefers_first, position_effect (+p), consistency over
    orders, prefers_longer and by how much more than humans (longer_excess), prefers_list, list_excess."""
    self_preference: pd.DataFrame
    """Per annotator that is also a generator: generator, excess over humans in preferring it."""
    pairs: pd.DataFrame
    """Per pair of annotators, and of an annotator and a null judge: agreement with one another, kappa, and correlation
    of their errors against the majority of the humans, with p-value adjusted by Holm."""
    coefficients: pd.DataFrame
    """For the humans and for the annotators among themselves: Fleiss' kappa, Krippendorff's alpha (nominal, interval),
    share of equal pairs of votes."""
    n_items: int
    n_instructions: int


def diagnose(
    labels: pd.DataFrame,
    human: pd.DataFrame,
    *,
    selves: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    bootstrap: int = 500,
    seed: int = 0,
) -> Diagnosis:
    """Compare annotators with human labels of the same pairs.

    Args:
        labels: With `annotator`; `order` and `replicate` where there are several; generator_1, generator_2 if known.
        human: Human labels; `annotator` names the person if known. Items are matched by their texts.
        selves: Which generator an annotator is, if their names differ; an annotator named like a generator is it.
        confidence: Of all intervals; they cluster by instruction.
        bootstrap: Draws for the coefficients (a fifth of them for reliability).
        seed: Of the draws.

    Raises:
        DataError: A table is not one of labels, or they have no item in common.
        UnknownNameError: `selves` names an annotator or generator that is not there.
    """
    data = align(labels, human)
    names = sorted(map(str, data.labels["annotator"].unique()))
    voters = {name: data.labels[data.labels["annotator"].astype(str) == name] for name in names}
    counts = {name: data.counts(rows) for name, rows in voters.items()}
    human_counts = data.counts(data.human)
    nulls = _null_judges(data)
    if not human_counts.sum() or not any(c.sum() for c in counts.values()):
        raise DataError("No item has a verdict on both sides: all preferences of one table are missing.")
    return Diagnosis(
        agreement=_agreement_table(data, voters, counts, nulls, confidence, bootstrap, seed),
        tastes=_taste_table(data, {**voters, HUMANS: data.human, **nulls}, confidence),
        self_preference=_self_table(data, voters, dict(selves or {}), confidence),
        pairs=_pair_table(data, counts, nulls, confidence, bootstrap, seed),
        coefficients=_coefficient_table(data, counts, human_counts, confidence, bootstrap, seed),
        n_items=len(data.items),
        n_instructions=int(data.clusters.max()) + 1,
    )


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.ci_low, f"{name}_high": estimate.ci_high}


def _or_nothing(function: Callable[..., Estimate], *arguments: Any, **options: Any) -> Estimate:
    try:
        return function(*arguments, **options)
    except DataError:  # the functions refuse an empty average; in a table of many it is an empty cell
        return NOTHING


def _percent(function: Callable[..., Estimate], *arguments: Any, **options: Any) -> Estimate:
    return _or_nothing(function, *arguments, **options).scaled(100)


def _agreement_table(
    data: Aligned,
    voters: dict[str, pd.DataFrame],
    counts: dict[str, Floats],
    nulls: dict[str, pd.DataFrame],
    confidence: float,
    bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    clusters, human = data.clusters, data.counts(data.human)
    pooled = np.sum(list(counts.values()), axis=0)
    pool = {POOL: pooled, POOL_MAJORITY: majority(pooled)} if len(counts) > 1 else {}
    reliability = _reliability(counts, clusters, confidence, bootstrap, seed)
    rows = []
    sources = {**voters, POOL: data.labels, HUMANS: data.human}
    shown = {**counts, **pool, HUMANS: human, **{name: data.counts(rows) for name, rows in nulls.items()}}
    for name, votes in shown.items():
        row: dict[str, object] = {"annotator": name, "n_labels": int(votes.sum()), "n_null": 0}
        if name in sources:
            missing = sources[name]["vote"].isna().to_numpy(float)
            row["n_null"] = int(missing.sum())
            which = codes(sources[name]["cluster"])
            row |= _columns("null_rate", _percent(clustered_mean, missing, which, confidence=confidence, share=True))
        others = votes if name == HUMANS else human
        options = {"confidence": confidence}
        row |= _columns("agreement", _percent(agreement, votes, others, clusters, **options))
        row |= _columns("agreement_no_ties", _percent(agreement, votes, others, clusters, ties=False, **options))
        if name == HUMANS:
            row |= _columns("alpacaeval_agreement", _percent(alpacaeval_leave_one_out, votes, clusters, **options))
        else:
            most = majority(human)
            row |= _columns("majority_agreement", _percent(agreement, votes, most, clusters, **options))
            row |= _columns("alpacaeval_agreement", _percent(alpacaeval_agreement, votes, human, clusters, **options))
            outer = votes[:, :, None] * most[:, None, :]
            kappa = {"draws_wanted": bootstrap, "confidence": confidence, "seed": seed}
            row |= _columns("kappa", _or_nothing(cohen_kappa, outer, clusters, **kappa))
        if name not in NULL_JUDGES:
            row |= _columns("variance", _percent(alpacaeval_variance, votes, clusters, **options))
            if name != HUMANS:
                row |= _columns("bias", _percent(alpacaeval_bias, votes, human, clusters, **options))
        rows.append(row | _columns("reliability", reliability.get(name, NOTHING)))
    return pd.DataFrame(rows)


def _reliability(
    counts: dict[str, Floats], clusters: Ints, confidence: float, bootstrap: int, seed: int
) -> dict[str, Estimate]:
    if len(counts) < FEWEST:
        return {}
    draws_wanted = max(bootstrap // 5, 20)
    fit = dawid_skene(
        np.stack(list(counts.values())), clusters, confidence=confidence, bootstrap=draws_wanted, seed=seed
    )
    bounds = zip(counts, fit.reliability, fit.ci_low, fit.ci_high, strict=True)
    return {name: Estimate(value, np.nan, low, high).scaled(100) for name, value, low, high in bounds}


def _null_judges(data: Aligned) -> dict[str, pd.DataFrame]:
    """Return the labels of judges that read nothing: the longer output, what the human table calls output_1, a coin."""
    n = len(data.items)
    swapped = data.human.drop_duplicates("item").set_index("item")["swapped"].reindex(range(n)).to_numpy(bool)
    item = np.arange(n)
    # a coin's verdict is either side with equal weight: a vote for each gives its expectation without draws
    votes = {
        NULL_JUDGES[0]: (item, 1.5 + np.sign(item_style(data.items)[0]) / 2),
        NULL_JUDGES[1]: (item, 1.0 + swapped),
        NULL_JUDGES[2]: (np.repeat(item, 2), np.tile([1.0, 2.0], n)),
    }
    return {
        name: pd.DataFrame({"item": which, "preference": vote, "vote": vote, "cluster": data.clusters[which]})
        for name, (which, vote) in votes.items()
    }


def _taste_table(data: Aligned, voters: dict[str, pd.DataFrame], confidence: float) -> pd.DataFrame:
    gap, lists = item_style(data.items)
    gap = np.where(np.abs(gap) > LENGTH_GAP, gap, 0.0)
    rows = []
    for name, table in voters.items():
        known = table[table["vote"].notna()]
        tie = (known["vote"] == 1.5).to_numpy(float)
        effect, p = position_effect(table, confidence=confidence)
        row: dict[str, object] = {"annotator": name}
        options: dict[str, Any] = {"confidence": confidence, "share": True}
        row |= _columns("tie_rate", _percent(clustered_mean, tie, codes(known["cluster"]), **options))
        row |= _columns("prefers_first", prefers_first(table, confidence=confidence))
        row |= _columns("position_effect", effect) | {"position_p": p}
        row |= _columns("consistency", order_consistency(table, confidence=confidence))
        row |= _columns("prefers_longer", prefers(table, gap, confidence=confidence))
        row |= _columns("prefers_list", prefers(table, lists.astype(float), confidence=confidence))
        if name != HUMANS:
            row |= _columns("longer_excess", excess(table, data.human, gap, confidence=confidence))
            row |= _columns("list_excess", excess(table, data.human, lists.astype(float), confidence=confidence))
        rows.append(row)
    return pd.DataFrame(rows)


def _self_table(
    data: Aligned, voters: dict[str, pd.DataFrame], selves: dict[str, str], confidence: float
) -> pd.DataFrame:
    columns = ["annotator", "generator", "self_preference", "self_preference_low", "self_preference_high"]
    if "generator_1" not in data.items.columns:
        if selves:
            raise DataError("Self-preference needs the columns generator_1 and generator_2 in both tables.")
        return pd.DataFrame(columns=columns)
    generators = sorted({str(g) for c in ("generator_1", "generator_2") for g in data.items[c].unique()})
    for annotator, generator in selves.items():
        for kind, given, known in (("annotator", annotator, list(voters)), ("generator", generator, generators)):
            if given not in known:
                raise UnknownNameError(kind, given, known)
    rows = []
    for name, table in voters.items():
        generator = selves.get(name, name)
        if generator in generators:
            found = self_preference(table, data.human, data.items, generator, confidence=confidence)
            rows.append({"annotator": name, "generator": generator, **_columns("self_preference", found)})
    return pd.DataFrame(rows, columns=columns)


def _pair_table(
    data: Aligned,
    counts: dict[str, Floats],
    nulls: dict[str, pd.DataFrame],
    confidence: float,
    bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    clusters, truth = data.clusters, majority(data.counts(data.human))
    # a human tie leaves open which side is the error
    sure = (truth[:, 0] + truth[:, 2]) > 0
    rows = []
    # a coin errs with nobody
    fixed = {name: data.counts(nulls[name]) for name in NULL_JUDGES[:2]}
    every = {**counts, **fixed}
    for a, b in [*combinations(counts, 2), *product(counts, fixed)]:
        one, two = every[a], every[b]
        n_one, n_two = one.sum(1), two.sum(1)
        both = (n_one > 0) & (n_two > 0)
        outer = one[:, :, None] * two[:, None, :]
        row: dict[str, object] = {"annotator_a": a, "annotator_b": b, "n_items": int(both.sum())}
        row |= _columns("agreement", _percent(agreement, one, two, clusters, confidence=confidence))
        kappa = {"draws_wanted": bootstrap, "confidence": confidence, "seed": seed}
        row |= _columns("kappa", _or_nothing(cohen_kappa, outer, clusters, **kappa))
        kept = both & sure
        found, p = NOTHING, 1.0
        if kept.sum() > 2:
            errors = [1 - (c[kept] * truth[kept]).sum(1) / n[kept] for c, n in ((one, n_one), (two, n_two))]
            centred = [(e - e.mean()) / e.std() if e.std() > 0 else np.zeros(len(e)) for e in errors]
            groups = codes(clusters[kept])
            found = clustered_mean(centred[0] * centred[1], groups, confidence=confidence)
            if found.standard_error > 0:
                p = float(2 * stats.t.sf(abs(found.value) / found.standard_error, max(int(groups.max()), 1)))
        rows.append({**row, **_columns("error_correlation", found), "p": p})
    columns = ["annotator_a", "annotator_b", "n_items", "error_correlation", "p"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    return table.assign(p_adjusted=holm(table["p"].to_numpy(float)))


def _coefficient_table(
    data: Aligned, counts: dict[str, Floats], human: Floats, confidence: float, bootstrap: int, seed: int
) -> pd.DataFrame:
    options = {"draws_wanted": bootstrap, "confidence": confidence, "seed": seed}
    rows = []
    for who, votes in (("humans", human), ("annotators", np.sum(list(counts.values()), axis=0))):
        row: dict[str, object] = {"who": who, "n_items_with_two": int((votes.sum(1) > 1).sum())}
        row |= _columns("equal", _percent(agreement, votes, votes, data.clusters, confidence=confidence))
        row |= _columns(
            "equal_no_ties", _percent(agreement, votes, votes, data.clusters, ties=False, confidence=confidence)
        )
        row |= _columns("fleiss_kappa", _or_nothing(fleiss_kappa, votes, data.clusters, **options))
        for metric in ("nominal", "interval"):
            found = _or_nothing(krippendorff_alpha, votes, data.clusters, metric=metric, **options)
            row |= _columns(f"alpha_{metric}", found)
        rows.append(row)
    return pd.DataFrame(rows)
