"""Random faults in the files of a stored version: one flipped bit, a truncation, a file that is added, missing or a link."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

KINDS = ("bit", "truncated", "added", "missing", "linked")
SETTLED = {"registered_model_meta"}


def stored_files(model: Path) -> list[Path]:
    """Every file of a stored version, the bundle's and those around it."""
    return sorted(path for path in model.rglob("*") if path.is_file() and path.name not in SETTLED)


def faults(model: Path, counts: dict[str, int], seed: int) -> Iterator[tuple[str, Path]]:
    """Apply one fault after the other to the files of `model`, yield (kind, the file to be named), and undo it."""
    source = random.Random(seed)
    files = stored_files(model)
    spare = model.parent / "spare"
    for kind, count in counts.items():
        for number in range(count):
            file = files[number % len(files)]  # every artefact in turn, the place in it by chance
            content = file.read_bytes()
            named = file
            if kind == "bit":
                bit = source.randrange(len(content) * 8)
                file.write_bytes(content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :])
            elif kind == "truncated":
                file.write_bytes(content[: source.randrange(len(content))])
            elif kind == "missing":
                file.unlink()
            elif kind == "linked":
                spare.write_bytes(content)
                file.unlink()
                file.symlink_to(spare)
            else:
                named = file.with_name(f"{source.choice(['.', '', 'adapter_model.'])}{source.randrange(10**6)}.bin")
                named.write_bytes(b"x")
            yield kind, named
            if named != file:
                named.unlink()
            file.unlink(missing_ok=True)
            file.write_bytes(content)
    spare.unlink(missing_ok=True)


def copy_of(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to
