"""A stage started by a Python that promptmill is not installed in: dvc.yaml says `python`, so PATH decides."""

import subprocess
import sys


def test_a_python_without_the_dependencies_says_which_one_it_is_and_what_to_do(repo_root):
    bare = [sys.executable, "-S", "-m", "pipeline", "tune", "--task", "tweet_sentiment"]
    done = subprocess.run(bare, cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no module ")
    assert 'PATH="$PWD/.venv/bin:$PATH" dvc repro' in line
