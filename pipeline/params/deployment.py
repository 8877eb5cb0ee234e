"""The section deployment: when a task is retrained by itself, where its runs execute, and who hears of what; and `fleet`, when all of them are. Flows use both, no stage does."""

import re
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.params.section import PositiveInt, Section

Trigger = Literal["data_changed", "data_drifted", "champion_below_limits", "base_model_changed"]
Occasion = Literal["failed", "refused", "approval_requested", "promoted", "rolled_back"]

# Field of a cron line: its name, and the range of its numbers. The names of months and days may stand for theirs.
_CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_PART = re.compile(r"(?:(\*)|([0-9]+|[a-z]{3})(?:-([0-9]+|[a-z]{3}))?)(?:/([0-9]+))?")


def _five_fields(cron: str) -> str:
    problem = cron_problem(cron)
    if problem:
        raise ValueError(f"{cron!r} is no cron line: {problem}")
    return cron


def _known_zone(timezone: str) -> str:
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # unknown, no name at all, or a folder of the database
        raise ValueError(f"{timezone!r} is no time zone of the IANA database; write one as Europe/Berlin or UTC") from None
    return timezone


Cron = Annotated[str, AfterValidator(_five_fields)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]


class WorkPool(Section):
    """The Prefect work pool whose workers execute the task's runs; tasks that name one pool must say the same about it.

    `type` is a worker type that Prefect knows (process, docker, kubernetes). `limit`: how many runs the pool executes at once (null: no limit).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")]
    type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    limit: PositiveInt | None


class Notification(Section):
    """Who hears of which occasions. Exactly one of three says where the message goes; none holds a secret.

    `block`: a Prefect notification block that exists, as `type/name`, of any type Prefect has. `webhook_variable` and `email_variable`: names of environment
    variables that hold a Slack-compatible webhook's URL, and a mail server with its account and recipient (`mailtos://USER:PASSWORD@HOST?to=WHOM`);
    `promptmill deploy` makes a block of it.
    """

    on: Annotated[list[Occasion], Field(min_length=1)]
    block: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None = None
    webhook_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    email_variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Notification":
        places = [place for place in (self.block, self.webhook_variable, self.email_variable) if place is not None]
        if len(places) != 1:
            raise ValueError(f"found {len(places)} of block, webhook_variable and email_variable; give exactly one")
        return self


class Stuck(Section):
    """When a run counts as dead. `silent_minutes`: it runs and its process sends no heartbeat; `pending_minutes`: it was handed to a worker and does not start.

    Such a run is set to Crashed, which frees its slot. null: it is left alone.
    """

    silent_minutes: Annotated[int, Field(ge=2)] | None
    pending_minutes: Annotated[int, Field(ge=1)] | None


class DeploymentParams(Section):
    """What `promptmill deploy` sets up on a Prefect server for the task.

    `retrain_cron` and `reassess_cron`: five-field cron lines in `timezone` (null: no schedule). `triggers`: the events that start a retraining.
    `refresh`: read the source again before each scheduled run, for sources that change behind an unchanged params.yaml. `collision`: what becomes of a retraining that
    is asked for while one is at work: enqueue waits for it, cancel_new drops the new one. `job_variables`: what the pool's
    job template takes (image, namespace); readable by everybody who sees the server, so no place for secrets.
    """

    retrain_cron: Cron | None
    reassess_cron: Cron | None
    timezone: TimeZone
    paused: bool
    triggers: list[Trigger]
    refresh: bool
    collision: Literal["enqueue", "cancel_new"]
    pool: WorkPool
    job_variables: dict[str, Any]
    notifications: list[Notification]
    stuck: Stuck

    @field_validator("triggers")
    @classmethod
    def _distinct(cls, triggers: list[Trigger]) -> list[Trigger]:
        twice = sorted({trigger for trigger in triggers if triggers.count(trigger) > 1})
        if twice:
            raise ValueError(f"{twice} listed twice; each event starts one retraining")
        return triggers


class FleetParams(Section):
    """The key `fleet` beside `defaults` and `tasks`: the deployment that retrains all tasks together. Without the key there is none.

    `cron`: a five-field cron line in `timezone` (null: no schedule). `at_once`: how many tasks the run has at work at a time; `changed_only`: leave tasks alone whose
    data, params and code did not change. `pool`, `job_variables`, `stuck`: as in the section deployment, for the run of the fleet itself.
    """

    cron: Cron | None
    timezone: TimeZone
    paused: bool
    at_once: PositiveInt
    changed_only: bool
    pool: WorkPool
    job_variables: dict[str, Any]
    stuck: Stuck


def cron_problem(line: str) -> str | None:
    """What is wrong with a cron line of five fields (minute, hour, day of month, month, day of week), or None."""
    fields = line.lower().split()
    if len(fields) != len(_CRON_FIELDS):
        return f"it has {len(fields)} fields, expected 5: {', '.join(name for name, _, _ in _CRON_FIELDS)}"
    for text, (name, low, high) in zip(fields, _CRON_FIELDS, strict=True):
        for part in text.split(","):
            if not _within(part, name, low, high):
                return f"the {name} is {text!r}, expected *, numbers from {low} to {high}, ranges, lists or steps (*/5)"
    return None


def _within(part: str, name: str, low: int, high: int) -> bool:
    """Whether one part of a list in a cron field is well-formed and within the field's range."""
    matched = _CRON_PART.fullmatch(part)
    if not matched or (matched[4] is not None and int(matched[4]) == 0):
        return False
    names = {"month": {text: number for number, text in enumerate(_MONTHS, 1)}, "day of week": {text: n for n, text in enumerate(_DAYS)}}
    known = names.get(name, {})
    ends = [int(end) if end.isdecimal() else known.get(end, -1) for end in (matched[2], matched[3]) if end is not None]
    return all(low <= end <= high for end in ends) and ends == sorted(ends)
