"""The promotion rule: every check with its figures and a verdict, and the decision that follows from the verdicts.

Pure functions over the records of earlier stages. The rule fails closed: the decision is `promote` only when there is at
least one check and every verdict is PASS, and `ask` (a person decides) only when the others are INCONCLUSIVE or INSUFFICIENT. The verdicts:

PASS          the figure satisfies the limit over its whole interval (see each check for its exact rule)
FAIL          the figure violates the limit
INCONCLUSIVE  the interval holds the limit: this many rows cannot decide
INSUFFICIENT  fewer rows than the stated minimum
MISSING       the record lacks the figure, or the group has no rows
DEGENERATE    the tuned prompt gives one label too often, or another never
ERROR         the figure is not a finite number in its range, or the check could not be evaluated

Several floors at once need no correction for multiple tests, because all of them must hold. A limit on a difference alone
can be met by making the better group worse; set a floor on each group beside it.

checks: what a check is, and how a planned one is judged; estimates: figures read from a record, or the reason why not
metrics_checks, fairness_checks, relative_checks, data_checks, cost_checks: the checks of one record each; slice_checks: of two
decision: what follows from the verdicts
"""
