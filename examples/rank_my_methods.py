"""Which of my methods would be preferred, and how sure is that?"""

import pandas as pd
from toy import outputs

import simfarm as sf

# yours: sf.read_outputs("outputs/ppo.json"), a file with columns instruction, output
baseline = outputs("baseline")
methods = {name: outputs(name) for name in ("sft", "best_of_n", "ppo")}

pairs = pd.concat([sf.head_to_head(table, baseline) for table in methods.values()])

# yours: "embedded" (offline, real text), or a prompted pool such as "alpacaeval" on your own models
pool = sf.load_pool("fake-biased")
labels = pool.annotate(pairs, seed=0, orders="both", replicates=2)

print(sf.win_rates(labels, baseline="baseline")[["generator", "win_rate", "ci_low", "ci_high", "n_instructions"]])
print(sf.length_controlled(labels, baseline="baseline")[["generator", "lc_win_rate", "ci_low", "ci_high"]])

ranking = sf.rank(labels)
print(ranking[["generator", "rank", "rank_low", "rank_high", "rating"]])

simulated = ranking.rename(columns={"rating": "score"})[["generator", "score", "standard_error"]]
people = sf.load_human_ranking("alpacafarm")
print(sf.rank_correlations(simulated, people)[["coefficient", "value", "ci_low", "ci_high", "p", "n"]])
