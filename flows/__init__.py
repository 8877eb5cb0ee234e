"""promptmill's shell: order, side effects, and the command line. Everything that computes is in pipeline/."""
