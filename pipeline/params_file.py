"""The YAML side of params.yaml: reading it, merging the two sides of a task, and naming the place of an error.

Nothing here knows a section or a model; `pipeline.params` does.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import ParamsError

# Keys of mappings that come in several kinds, and of lists of such mappings.
WITH_KINDS = frozenset({"source", "init", "method"})
LISTS_WITH_KINDS = frozenset({"inits", "tests"})


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping that a YAML 1.2 file holds; raises ParamsError naming the line when it is not one."""
    try:
        document: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8"))  # as DVC does
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist. Run promptmill inside a clone of your pipeline repository.") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read ({error.strerror}). Make it a file you may read.") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {_yaml_problem(error)}. Correct that place.") from None
    if not isinstance(document, Mapping):
        raise ParamsError(f"{path} must hold the two mappings `defaults` and `tasks`; found {type(document).__name__}.")
    return cast(Mapping[str, Any], document)


def _yaml_problem(error: YAMLError) -> str:
    """One line: where, and what. The parser's own text spans several lines and quotes the file."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def replace_source(text: str, task: str, source: Mapping[str, Any]) -> str:
    """The text of a params file with `tasks.<task>.ingest.source` set to `source`, as `replace_source_in` does."""
    return replace_source_in(text, ("tasks", task, "ingest"), source)


def replace_source_in(text: str, section: tuple[str, ...], source: Mapping[str, Any]) -> str:
    """The text of a params file with the key `source` of a section set to `source`; every other line stays as it is.

    Raises ParamsError with the change to make by hand when that key does not stand on lines of its own.
    """
    document: Any = YAML(typ="rt").load(text)
    lines = text.splitlines(keepends=True)
    block = io.StringIO()
    try:
        node: Any = reduce(getitem, section, document)
        entry: dict[str, Any] = {"source": dict(source)}
        if node:
            first, column = node.lc.key("source" if "source" in node else next(iter(node)))
            end = first + _block_length(lines[first:], column) if "source" in node else first
        else:  # `section: {}`
            first, column = reduce(getitem, section[:-1], document).lc.key(section[-1])
            entry, end = {section[-1]: entry}, first + 1
        YAML().dump(entry, block)
        new = "".join([*lines[:first], *(" " * column + line for line in block.getvalue().splitlines(keepends=True)), *lines[end:]])
        expected: Any = YAML(typ="safe").load(text)
        reduce(getitem, section, expected)["source"] = dict(source)
        if YAML(typ="safe").load(new) == expected:
            return new
    except (KeyError, StopIteration, AttributeError, YAMLError):
        pass
    raise ParamsError(
        f"{'.'.join(section)}.source cannot be replaced without touching other lines of params.yaml. Set it by hand to {dict(source)} and run "
        "the same command again."
    )


def _block_length(lines: Sequence[str], column: int) -> int:
    """How many lines the value of the key on the first line takes: that line, and those below that are indented deeper."""
    below = itertools.takewhile(lambda line: not line.strip() or len(line) - len(line.lstrip()) > column, lines[1:])
    block = [lines[0], *below]
    while not block[-1].strip():
        block.pop()
    return len(block)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key. Lists, scalars and mappings with another `kind` replace what is under them."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            under_it, over_it = cast(Mapping[str, Any], below), cast(Mapping[str, Any], value)
            merged[key] = merge(under_it, over_it) if over_it.get("kind", under_it.get("kind")) == under_it.get("kind") else value
        else:
            merged[key] = value
    return merged


def describe(detail: Any, task: str, defaults: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[str]:
    """One line for each problem of one pydantic error, with the dotted path of the side (task or defaults) that holds the value."""
    if detail["type"] == "sections_disagree":
        for dotted, problem in detail["ctx"]["problems"]:
            yield f"{side_of(tuple(dotted.split('.')), task, defaults, sections)}.{dotted}: {problem}"
        return
    location = _location(detail)
    path = ".".join((side_of(location, task, defaults, sections), *location))
    yield f"{path}: {_problem(detail)}"


def describe_at(detail: Any, key: str) -> str:
    """One line for one pydantic error of the value at a top-level key that no task shares."""
    return f"{'.'.join((key, *_location(detail)))}: {_problem(detail)}"


def _location(detail: Any) -> tuple[str, ...]:
    """The keys that lead to the value, without the marks pydantic adds for the chosen `kind` of a mapping and for a key."""
    location = tuple(str(part) for part in detail["loc"])
    # Right after the key of a mapping that has kinds, or after an item of a list of them, stands the kind.
    before = (("", ""), *zip(("", *location), location, strict=False))
    plain = tuple(
        part for (above, key), part in zip(before, location, strict=False) if not (key in WITH_KINDS or above in LISTS_WITH_KINDS)
    )
    if detail["type"].startswith("union_tag"):
        return (*plain, "kind")
    return plain[:-1] if plain[-1:] == ("[key]",) else plain


def _problem(detail: Any) -> str:
    found = repr(detail["input"])
    found = found if len(found) <= 200 else f"{found[:200]}..."
    if detail["type"] == "extra_forbidden":
        return f"unknown key (value {found}); remove it or correct its name"
    if detail["type"] == "missing":
        return "missing, and there is no default"
    if detail["loc"][-1:] == ("[key]",):
        return f"a key must be text, found {found}; put it in quotes"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return message if detail["type"] == "value_error" else f"{message}; found {found}"


def side_of(location: tuple[str, ...], task: str, defaults: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """Where the value at `location` was written: the task's side, unless only the defaults hold it."""
    in_task, in_defaults = _value_at(sections, location), _value_at(defaults, location)
    return "defaults" if in_task in (None, {}) and in_defaults is not None else f"tasks.{task}"


def listed(path: Path, errors: Iterable[str]) -> ParamsError:
    """The error that lists all lines, each of which starts with the dotted path of its key."""
    lines = list(errors)
    return ParamsError("\n".join((f"{path} has {len(lines)} error(s); correct these keys:", *(f"  {line}" for line in lines))))


def _value_at(mapping: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of keys and list positions, None where there is none (or a null)."""
    node: Any = mapping
    for part in path:
        if isinstance(node, Mapping):
            node = next((value for key, value in cast(Mapping[Any, Any], node).items() if str(key) == part), None)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(cast(list[Any], node)):
            node = cast(list[Any], node)[int(part)]
        else:
            return None
    return node
