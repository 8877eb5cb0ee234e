"""The tuning engine: soft prompts for a frozen decoder-only language model.

It imports with torch, transformers and peft alone, takes plain keyword-only values and tensors, and knows no params file,
tracker or flow, so that the folder can be carried to a bare GPU machine.

Letters in shapes, after Lester et al. (2021): B batch, T text tokens, P virtual tokens, S shared prefix (P plus the tokens
of the hard prompt template that are the same for every example), H hidden size, V vocabulary, C labels.
"""
