"""The over-optimization laboratory: one thing is varied, and gold is measured along best-of-n and along PPO."""
