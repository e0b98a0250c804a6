"""Hyper-parameters of reward models, apart from them so that a config can be checked without PyTorch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Pooling = Literal["last", "mean"]


class RewardConfig(BaseModel):
    """How a reward model is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: Literal["zero", "probe", "random"] = "zero"
    """Where the linear score starts: at zero; fitted on the states of the initial model, before any layer is trained
    (Kumar et al. 2022, linear probing then fine-tuning); or drawn from N(0, 1/(H + 1)) by the seed (Stiennon et al.
    2020), so that members of an ensemble start apart."""
    epochs: int = Field(1, ge=0)
    """Passes over the labels that train the layers (AlpacaFarm: 1); 0 leaves the probe as it is."""
    batch_size: int = Field(16, ge=1)
    """Pairs per optimiser step (AlpacaFarm: 16)."""
    learning_rate: float = Field(3e-6, gt=0)
    """Peak; cosine with 3 % warm-up (AlpacaFarm: 3e-6, all layers of a 7B model)."""
    weight_decay: float = Field(0.0, ge=0)
    pooling: Pooling = "last"
    """Which state is scored: the last token's, or the mean over the response."""
    margin: float = Field(0.0, ge=0)
    """Gap that preferred responses are to have, in log-odds (Touvron et al. 2023)."""
    flip: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels known to be turned round, which the loss then allows for."""
