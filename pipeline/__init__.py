"""promptmill's library: everything that computes. It knows nothing of Prefect."""
