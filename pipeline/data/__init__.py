"""From a source to three splits: reading, the data contract, duplicates and splitting.

`sources` reads labelled rows; `quarantine` and `deduplication` sort out single rows; `contract` judges whole tables
(the only module that imports Great Expectations) and `data_docs` makes its pages readable without a network;
`splitting` gives every accepted row its split. All are deterministic functions of rows and parameters.
"""
