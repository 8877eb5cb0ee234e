"""The errors a user can meet.

Every message says what was checked, where (file, row or dotted key), what was found, what was expected and what to do next.
Third-party exceptions are mapped to these at the edge where they arise. `exit_code` is what the command line returns.
"""


class PromptmillError(Exception):
    """Base of every error raised on purpose; its text is one message a person can act on."""

    exit_code = 1


class ParamsError(PromptmillError):
    """params.yaml does not describe a valid task: unknown key, wrong type, missing section."""

    exit_code = 2


class WorkspaceError(PromptmillError):
    """The folder promptmill runs in lacks something: no params.yaml, no git checkout, no DVC, a locked workspace."""


class SourceError(PromptmillError):
    """The data source cannot be read as described: missing file, wrong encoding, missing column, empty file."""


class ContractError(PromptmillError):
    """A critical expectation of the data contract failed, so no prompt is tuned on these rows."""


class SplitError(PromptmillError):
    """The accepted rows cannot be split as asked: too few rows, or a label without rows in a split."""


class BaseModelError(PromptmillError):
    """The base model cannot be found, converted, cached or used with the asked method."""


class TemplateError(PromptmillError):
    """A hard prompt template or a verbalizer cannot be used with this tokenizer or these fields."""


class TrainingError(PromptmillError):
    """Training diverged or produced a soft prompt that must not be exported."""


class CheckpointError(PromptmillError):
    """A training checkpoint is there but must not be used: altered, of another format, or of another run."""


class TrainingInterrupted(PromptmillError):
    """Training was asked to stop and can be taken up again; the exit code is sysexits' "temporary failure, try again"."""

    exit_code = 75


class BundleError(PromptmillError):
    """A tuned prompt bundle is incomplete, altered, or belongs to another base model."""


class StageInputError(PromptmillError):
    """A stage's declared input is missing or does not have the expected columns or keys."""


class StageFailed(PromptmillError):
    """A stage's process ended with a non-zero exit code; carries the stage's own message."""


class RegistryError(PromptmillError):
    """The MLflow tracking server or registry refused or lacks what was asked for."""


class RegistryUnreachable(RegistryError):
    """The MLflow server does not answer at all: what was to be recorded can be kept and delivered later."""


class RecordSpooled(PromptmillError):
    """MLflow did not answer, so the record of a finished run waits in the spool; sysexits' "temporary failure, try again"."""

    exit_code = 75


class StagesWait(RegistryUnreachable):
    """MLflow did not answer a stage that asks it: that one and those after it are still to be done, all others are."""

    exit_code = 75


class ChampionChanged(RegistryError):
    """Another version became champion after the one that a decision was made against: compare again."""


class ApprovalError(PromptmillError):
    """An approval that cannot count: without a reason, for another manifest, for a version that does not wait or was answered."""


class NeedsApproval(PromptmillError):
    """A person has to approve the version before it can become champion: a clean end, with an exit code of its own."""

    exit_code = 6


class DataDrifted(PromptmillError):
    """The data is not that of the version it was compared with any more: a finding, with an exit code of its own."""

    exit_code = 4


class NotPromoted(PromptmillError):
    """The gate refused the tuned prompt: a clean end, not a failure, with an exit code of its own."""

    exit_code = 3


class NotReproduced(PromptmillError):
    """A version was made again and is not the one that was recorded: a finding, with an exit code of its own."""

    exit_code = 5


class DeployError(PromptmillError):
    """What params.yaml asks of the Prefect server cannot be set up there."""


class ClusterError(PromptmillError):
    """The Ray cluster that was asked for cannot be used: not installed, not reached, too small, or it gave up."""
