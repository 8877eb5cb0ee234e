"""How well a tuned prompt sorts the test rows, against its baselines, with an interval for every figure.

predictions: the scored rows, read and checked before anything is computed from them
intervals: Wilson and Newcombe intervals for proportions and their differences, the bootstrap for what has no closed form
metrics: accuracy, macro F1, log loss, per-class figures, and paired differences between variants
"""
