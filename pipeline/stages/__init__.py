"""One module per DVC stage, each with `run(*, params, inputs, outputs) -> report`.

A stage reads only its declared inputs, rewrites its declared outputs completely, is deterministic and prints nothing
but its progress on stderr. `python -m pipeline <stage> --task <task>` runs one.
"""
