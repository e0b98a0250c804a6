"""How far can I trust my judge? Compare it with people's labels of the same pairs."""

from toy import human_labels, outputs

import simfarm as sf

pairs = sf.head_to_head(outputs("ppo"), outputs("baseline"))

# yours: tables.read_table("human.jsonl"), one row per person and pair, preference from 1 (output_1) to 2 (output_2)
people = human_labels(pairs)

# every member judges every pair, so that they can be told apart
labels = sf.load_pool("fake-biased").annotate(pairs, seed=0, assign="all", orders="random")
found = sf.diagnose(labels, people, bootstrap=50)

print(found.agreement[["annotator", "agreement", "agreement_low", "agreement_high", "kappa"]])
print(found.tastes[["annotator", "prefers_first", "position_effect", "prefers_longer", "longer_excess"]])
