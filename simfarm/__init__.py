"""simfarm simulates human preference feedback for those who develop methods that learn from it.

The names below cover the whole story, from pairs to a report; each is imported when it is first used, so that
`import simfarm` is quick and needs no torch. Tables come and go as pandas DataFrames.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simfarm.annotators.calibration import calibrate_pool
    from simfarm.annotators.inputs import to_trl
    from simfarm.annotators.pool import load_pool
    from simfarm.api import best_of_n, plan_study, rank, run
    from simfarm.errors import SimfarmError
    from simfarm.evalsets import load_human_ranking, load_instructions
    from simfarm.evaluation.correlation import rank_correlations
    from simfarm.evaluation.diagnostics import diagnose
    from simfarm.evaluation.length_control import length_controlled
    from simfarm.evaluation.winrate import win_rates
    from simfarm.report.compare import compare_runs
    from simfarm.report.figures import plot_best_of_n
    from simfarm.tables import head_to_head, read_outputs, to_alpaca_eval

__version__ = "0.1.0"
__all__ = [
    "SimfarmError",
    "best_of_n",
    "calibrate_pool",
    "compare_runs",
    "diagnose",
    "head_to_head",
    "length_controlled",
    "load_human_ranking",
    "load_instructions",
    "load_pool",
    "plan_study",
    "plot_best_of_n",
    "rank",
    "rank_correlations",
    "read_outputs",
    "run",
    "to_alpaca_eval",
    "to_trl",
    "win_rates",
]
_HOME = {
    "SimfarmError": "errors",
    "best_of_n": "api",
    "calibrate_pool": "annotators.calibration",
    "compare_runs": "report.compare",
    "diagnose": "evaluation.diagnostics",
    "head_to_head": "tables",
    "length_controlled": "evaluation.length_control",
    "load_human_ranking": "evalsets",
    "load_instructions": "evalsets",
    "load_pool": "annotators.pool",
    "plan_study": "api",
    "plot_best_of_n": "report.figures",
    "rank": "api",
    "rank_correlations": "evaluation.correlation",
    "read_outputs": "tables",
    "run": "api",
    "to_alpaca_eval": "tables",
    "to_trl": "annotators.inputs",
    "win_rates": "evaluation.winrate",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        from simfarm.errors import suggest

        raise AttributeError(f"module 'simfarm' has no attribute {name!r}.{suggest(name, __all__)}")
    value = getattr(importlib.import_module(f"simfarm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
