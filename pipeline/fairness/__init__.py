"""How a tuned prompt's figures differ between groups of rows, with an interval for each and a refusal where rows are too few.

A group here is a property of the text, such as the company it mentions, and says nothing about its author.

groups: rows -> groups, from patterns
point_values: per-group values from fairlearn, the only module that imports it
disaggregated: the assessment, with intervals and the differences between groups
"""
