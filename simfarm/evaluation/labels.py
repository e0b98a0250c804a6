"""Labels as statistics need them: checked, with the generators named, and seen from one generator's side."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simfarm.errors import DataError, UnknownNameError
from simfarm.tables import check_labels, require_columns

GENERATORS = ("generator_1", "generator_2")
IDENTITY = (
    "instruction", "input", "output_1", "output_2", "generator_1", "generator_2",
    "annotator", "order", "replicate", "seed",
)  # fmt: skip


def check_unique(labels: pd.DataFrame, name: str = "labels") -> None:
    """Check that no label stands twice.

    Raises:
        DataError: Two rows agree in all that identifies a label: texts, generators, annotator, order, replicate.
    """
    keys = [column for column in IDENTITY if column in labels.columns]
    twice = labels.duplicated(keys)
    if twice.any():
        row = int(twice.to_numpy().argmax())
        raise DataError(
            f"{name} has {int(twice.sum())} duplicate rows; the first is row {row}, for the instruction "
            f"{str(labels['instruction'].iloc[row])[:60]!r}. Drop them, or tell repeated verdicts apart with a column "
            "`annotator`, `order` or `replicate`."
        )


def check_battles(labels: pd.DataFrame, name: str = "labels") -> pd.DataFrame:
    """Check labels that name their generators; return them as `tables.check_labels` does.

    Raises:
        DataError: A column is missing, a preference is out of range, a generator is missing or compared with itself,
            or a row stands twice.
    """
    labels = check_labels(labels, name)
    require_columns(labels, GENERATORS, name)
    for column in GENERATORS:
        if labels[column].isna().any():
            row = int(labels[column].isna().to_numpy().argmax())
            raise DataError(f"{name}, row {row}: {column} is missing; each row must name both generators.")
    itself = (labels["generator_1"] == labels["generator_2"]).to_numpy()
    if itself.any():
        row = int(itself.argmax())
        raise DataError(
            f"{name}, row {row}: {labels['generator_1'].iloc[row]!r} is compared with itself "
            f"({int(itself.sum())} such rows). Such a row says nothing of who is better; remove it."
        )
    check_unique(labels, name)
    return labels


def known_generators(labels: pd.DataFrame) -> list[str]:
    """Return the names of the generators, sorted."""
    return sorted({str(name) for column in GENERATORS for name in labels[column].unique()})


def choose_baseline(labels: pd.DataFrame, baseline: str | None) -> str:
    """Return the baseline: the one named, else the one that takes part in every row.

    Raises:
        UnknownNameError: There is no such generator.
        DataError: None was named and no generator, or more than one, takes part in every row.
    """
    known = known_generators(labels)
    if baseline is not None:
        if baseline not in known:
            raise UnknownNameError("generator", baseline, known)
        return baseline
    for column in GENERATORS:
        if labels[column].nunique() == 1:
            return str(labels[column].iloc[0])
    common = [g for g in known if ((labels["generator_1"] == g) | (labels["generator_2"] == g)).all()]
    if len(common) == 1:
        return common[0]
    raise DataError(
        "No single generator takes part in every row, so the baseline must be named (--baseline): one of "
        f"{', '.join(known)}. Without a baseline, rank the generators with a Bradley–Terry fit (`simfarm rank`)."
    )


def against(labels: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the rows with the baseline, seen from the other side.

    Returns:
        The rows, with `generator` (the other), `score` (1 = the other wins, 0 = the baseline wins; soft labels
        between; NaN if missing), `baseline_first` (whether output_1 is the baseline's), `length` and
        `baseline_length` (characters).
    """
    first = (labels["generator_1"] == baseline).to_numpy()
    ours = first | (labels["generator_2"] == baseline).to_numpy()
    rows, first = (labels, first) if ours.all() else (labels[ours], first[ours])
    preference = rows["preference"].to_numpy(float)
    # lengths are exchanged, not texts: a column of texts is slow to copy
    one, two = (rows[column].str.len().to_numpy() for column in ("output_1", "output_2"))
    return rows.assign(
        generator=rows["generator_2"].where(first, rows["generator_1"]),
        score=np.where(first, preference - 1, 2 - preference),
        baseline_first=first,
        length=np.where(first, two, one),
        baseline_length=np.where(first, one, two),
    )
