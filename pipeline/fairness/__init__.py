"""How a tuned prompt's figures differ between groups of rows, with an interval for each and a refusal where rows are too few.

A group found by a pattern is a property of the text, such as the company it mentions, and says nothing about its author.

groups: rows -> groups, by patterns, columns and intersections
point_values: per-group values from fairlearn, the only module that imports it
parity: differences and ratios of rates between groups, with simultaneous intervals
disaggregated: the assessment of all attributes
"""
