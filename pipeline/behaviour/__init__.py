"""What a tuned prompt does when a text changes in a way that should not matter, or only in one direction; without torch.

lexicons, swaps: counterfactual texts, such as with she for he
perturbations: typos, case, spacing, contractions
pair_files: ready-made pairs of texts, as of StereoSet and CrowS-Pairs
probes: every text to be asked
assessment: what the answers say
"""
