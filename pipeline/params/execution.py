"""The section execution: on which machine the stages that need a GPU run, and for how long. The flows use it, no output depends on it."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.params.section import PositiveFloat, Section

LOCAL, SAME = "local", "same"

Place = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class ExecutionParams(Section):
    """Where tune and score run: `local`, in the flow's own checkout, or the name of a Prefect work pool whose workers have the GPUs.

    `score`: `same` is wherever tune runs. `remote_checkpoints`: whether a worker copies tune's checkpoints to the DVC remote, so that another worker can go
    on from them. `start_seconds`: how long a stage waits for a worker to take it. `stage_seconds`: its time limit once a worker has it. `restarts`: how often
    it is handed out again when its worker dies. `processes`: how many processes of one machine share out every batch of tune, as torchrun starts them, one to a GPU;
    what is learnt is the same but for the rounding of sums.
    """

    tune: Place
    score: Place
    remote_checkpoints: bool
    start_seconds: PositiveFloat
    stage_seconds: PositiveFloat
    restarts: Annotated[int, Field(ge=0, le=100)]
    processes: Annotated[int, Field(ge=1, le=1024)]

    @model_validator(mode="after")
    def _tune_is_the_first(self) -> "ExecutionParams":
        if self.tune == SAME:
            raise ValueError("tune is 'same', and there is no stage before it that it could follow; write local or the name of a work pool")
        return self

    def pools(self) -> dict[str, str]:
        """Stage -> work pool of every stage that does not run in the flow's own checkout."""
        places = {"tune": self.tune, "score": self.tune if self.score == SAME else self.score}
        return {stage: place for stage, place in places.items() if place != LOCAL}
