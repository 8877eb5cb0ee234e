"""From a source to three splits: reading, the data contract, duplicates and splitting.

`sources` reads labelled rows; `quarantine` and `deduplication` sort out single rows; `contract` judges whole tables
(the only module that imports Great Expectations) and `data_docs` makes its pages readable without a network;
`splitting` gives every accepted row its split, with `near_duplicates`, and `leakage` checks that no two splits share a text. All are deterministic functions of rows and parameters.
"""
