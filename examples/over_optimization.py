"""Am I over-optimizing? Proxy and gold of best-of-n, for every n, from one set of samples."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from toy import INSTRUCTIONS

import simfarm as sf

# yours: 16 samples per instruction, scored by your reward model (proxy) and by a pool (gold, a probability)
rng = np.random.default_rng(0)
proxy = rng.normal(size=(len(INSTRUCTIONS), 16))
gold = 1 / (1 + np.exp(-(0.9 * proxy - 0.5 * proxy**2 + rng.normal(size=proxy.shape))))
samples = pd.DataFrame(
    {"instruction": np.repeat(INSTRUCTIONS["instruction"], 16), "reward": proxy.ravel(), "preferred": gold.ravel()}
)

curve = sf.best_of_n(samples, proxy="reward", gold="preferred")
best = curve.loc[curve["gold"].idxmax()]
print(curve[["n", "kl", "proxy", "gold", "gold_ci_low", "gold_ci_high"]].round(3).to_string(index=False))
print(f"gold is highest at n = {best['n']:.0f} (KL {best['kl']:.2f} nats)")

path = Path(tempfile.mkdtemp()) / "over_optimization.svg"
sf.plot_best_of_n(curve).savefig(path)
print(path)
