"""How many human labels do I have to buy to confirm a difference?"""

import pandas as pd
from toy import outputs

import simfarm as sf

# before anything is labelled: a difference of 5 points, and assumptions
print(sf.plan_study(5.0, price=0.35))

# with a pilot, here by a pool; its spread between instructions and between verdicts is estimated
pairs = pd.concat([sf.head_to_head(outputs(name), outputs("baseline")) for name in ("best_of_n", "ppo")])
pilot = sf.load_pool("fake-biased").annotate(pairs, seed=0, replicates=2)
print(sf.plan_study(5.0, pilot=pilot, raters=(1, 2, 3), price=0.35))
