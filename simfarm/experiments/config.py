"""The config of an experiment: TOML, built in or the user's own, with single keys set on the command line."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simfarm.config_errors import explain, known_keys
from simfarm.errors import ConfigError, UnknownNameError, suggest
from simfarm.experiments.laboratory.config import LaboratoryConfig
from simfarm.methods.config import (
    BestOfNConfig,
    ConditioningConfig,
    DPOConfig,
    ExpertIterationConfig,
    FeedMEConfig,
    PPOConfig,
    QuarkConfig,
    REINFORCEConfig,
    RLOOConfig,
)
from simfarm.rewards.config import RewardConfig

Method = Literal[
    "sft",
    "best_of_n",
    "expert_iteration",
    "ppo",
    "dpo",
    "binary_feedme",
    "binary_reward_conditioning",
    "quark",
    "reinforce",
    "rloo",
]
BUILTIN = Path(__file__).parent / "builtin"


class Section(BaseModel):
    """A table of the config; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where instructions come from: `SET/SPLIT` of a set that `simfarm evalsets` lists, or a file."""

    preference: str = "simfarm/preference"
    """Instructions whose responses are labelled."""
    unlabeled: str = "simfarm/unlabeled"
    """Instructions that expert iteration and PPO learn on."""
    eval: str = "simfarm/eval"
    """Instructions on which methods are compared."""
    limit: int | None = Field(None, ge=1)
    """Take only so many of each, drawn at random, the same in every run."""
    eval_limit: int | None = Field(None, ge=1)
    """Take only so many of `eval`; `limit` if unset."""

    def limit_of(self, split: str) -> int | None:
        """Return how many instructions of a split are taken at most; None is all."""
        return self.eval_limit or self.limit if split == "eval" else self.limit


class PolicyConfig(Section):
    """The initial policy and how it responds."""

    model: str = "hf/smollm2-135m"
    trainable_layers: int = Field(4, ge=1)
    """The last so many layers are trained, by every method and in the reward model."""
    lora_rank: int | None = Field(None, ge=1)
    """If given, adapters of this rank on these layers are trained instead of the layers themselves."""
    gradient_checkpointing: bool = False
    """Keep fewer activations: less memory, more time, the same gradients."""
    max_new_tokens: int = Field(300, ge=1)
    """Length limit of a response (AlpacaFarm: 300)."""
    temperature: float = Field(0.7, ge=0)
    """Of every response but PPO's rollouts, which are drawn at 1 (AlpacaFarm: 0.7)."""
    batch_size: int = Field(128, ge=1)
    """Rows decoded together."""
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"


class AnnotationConfig(Section):
    """How the labels for training are made."""

    pool: str = "embedded"
    flip: float = Field(0.25, ge=0, le=1)
    """Share of verdicts turned round (AlpacaFarm: 0.25)."""
    responses: int = Field(2, ge=2)
    """Responses per instruction."""
    pairs: Literal["disjoint", "all"] = "disjoint"
    """Which of them are compared: 1 with 2, 3 with 4, …; or each with each other."""
    replicates: int = Field(1, ge=1)
    """Labels per pair, each by a member drawn anew (AlpacaFarm: 1)."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the instructions whose labels are kept to test the reward model."""

    @property
    def paired(self) -> list[tuple[int, int]]:
        """The pairs of responses that are compared."""
        if self.pairs == "all":
            return list(itertools.combinations(range(self.responses), 2))
        return [(k, k + 1) for k in range(0, self.responses, 2)]

    @model_validator(mode="after")
    def _even(self) -> AnnotationConfig:
        if self.pairs == "disjoint" and self.responses % 2:
            raise ValueError(f"responses is {self.responses}; give an even number, or pairs = 'all'")
        return self


class EvaluationConfig(Section):
    """How the methods are judged."""

    pool: str = "embedded"
    orders: Literal["random", "both"] = "both"
    replicates: int = Field(1, ge=1)
    """Labels per comparison, each by a member drawn anew."""
    human_ranking: str | None = "alpacafarm"
    """A ranking by humans to compare with: a name from `simfarm evalsets` or a file."""


class OveroptimizationConfig(Section):
    """What is measured along training, beside the best-of-n curve."""

    every: int | None = Field(None, ge=1)
    """PPO steps between two looks, at which the evaluation instructions are answered, scored and judged."""


class ExperimentConfig(Section):
    """Everything that decides what a run computes."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    annotation: AnnotationConfig = AnnotationConfig()
    reward: RewardConfig = RewardConfig()
    methods: list[Method] = Field(["sft", "best_of_n", "expert_iteration", "ppo"], min_length=1)
    best_of_n: BestOfNConfig = BestOfNConfig()
    expert_iteration: ExpertIterationConfig = ExpertIterationConfig()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    binary_feedme: FeedMEConfig = FeedMEConfig()
    binary_reward_conditioning: ConditioningConfig = ConditioningConfig()
    quark: QuarkConfig = QuarkConfig()
    reinforce: REINFORCEConfig = REINFORCEConfig()
    rloo: RLOOConfig = RLOOConfig()
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Your own trained models: name = model, such as "hf/FOLDER". Each answers the evaluation instructions."""
    outputs: dict[str, str] = Field(default_factory=dict)
    """Your own outputs on the evaluation instructions: generator = file."""
    evaluation: EvaluationConfig = EvaluationConfig()
    overoptimization: OveroptimizationConfig = OveroptimizationConfig()

    @model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        if twice := {m for m in self.methods if self.methods.count(m) > 1}:
            raise ValueError(f"methods names {', '.join(sorted(twice))} twice")
        if self.expert_iteration.rollout != "transformers":
            raise ValueError(
                "expert_iteration.rollout: in an experiment transformers draws its candidates; leave it out"
            )
        for key, given in (("outputs", self.outputs), ("checkpoints", self.checkpoints)):
            taken = {*self.methods, "baseline"} & given.keys()
            if taken:
                raise ValueError(f"{key} names {', '.join(sorted(taken))}, which the experiment makes itself")
            if odd := [name for name in given if Path(name).name != name]:
                raise ValueError(f"{key} names {odd[0]!r}; a file of the run is named so: leave out slashes")
        if both := self.outputs.keys() & self.checkpoints.keys():
            raise ValueError(f"{', '.join(sorted(both))} stands in outputs and in checkpoints")
        return self


def experiment_names() -> list[str]:
    """Return the names of the built-in experiments."""
    return sorted(path.stem for path in BUILTIN.glob("*.toml"))


def load_experiment(name: str, settings: Sequence[str] = (), *, seed: int | None = None) -> ExperimentConfig:
    """Read the config of an experiment.

    Args:
        name: A built-in experiment, a TOML file, or the config.json of a run.
        settings: `key=value` with dotted keys, such as `ppo.learning_rate=2e-5`; they win over the file.
        seed: Wins over all.

    Raises:
        UnknownNameError: There is no such experiment or file.
        ConfigError: The file or a setting is not valid; the message names the key and the nearest known one. Or it is
            of a laboratory, which `load_config` reads.
    """
    config = load_config(name, settings, seed=seed)
    if isinstance(config, LaboratoryConfig):
        raise ConfigError(f"{name} is a laboratory, which gives curves and no win rates. Run it: simfarm run {name}")
    return config


def load_config(
    name: str, settings: Sequence[str] = (), *, seed: int | None = None
) -> ExperimentConfig | LaboratoryConfig:
    """Read the config of an experiment or, where the file says `kind = "laboratory"`, of a laboratory.

    Arguments and errors are those of `load_experiment`.
    """
    path = BUILTIN / f"{name}.toml" if name in experiment_names() else Path(name)
    if not path.is_file():
        hint = "Or give the path of a TOML file."
        raise UnknownNameError("experiment", name, experiment_names(), hint)
    values = _read(path)
    laboratory = values.get("kind") == "laboratory"
    model: type[ExperimentConfig] | type[LaboratoryConfig] = LaboratoryConfig if laboratory else ExperimentConfig
    for setting in settings:
        _set(values, setting, model)
    if seed is not None:
        values["seed"] = seed
    try:
        return model.model_validate(values)
    except ValidationError as error:
        source = f"{path.name} with --set {' --set '.join(settings)}" if settings else str(path)
        raise ConfigError(explain(error, model, source)) from error


def _read(path: Path) -> dict[str, Any]:
    import json

    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text("utf-8"))
            return dict(values.get("config", values))
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error


def _set(values: dict[str, Any], setting: str, model: type[BaseModel]) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, such as --set ppo.learning_rate=2e-5; given: {setting!r}.")
    *path, last = key.split(".")
    if path and path[0] in ("outputs", "checkpoints"):
        # names of one's own may hold dots: gpt-4.1
        path, last = path[:1], ".".join([*path[1:], last])
    known = known_keys(model, path)
    section = known_keys(model, path[:-1]) if path else known
    if path and path[-1] not in section:
        near = suggest(path[-1], section)
        raise ConfigError(f"--set {setting}: unknown key {'.'.join(path)!r}.{near} Known: {', '.join(section)}.")
    if last not in known and path not in (["outputs"], ["checkpoints"]):
        raise ConfigError(
            f"--set {setting}: unknown key {key!r}.{suggest(last, known)} Known here: {', '.join(known)}."
        )
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {setting}: {part!r} is a value, not a table of values.")
        values = inner
    try:
        # a value is TOML; a bare word, which TOML refuses, is a text
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables under dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
