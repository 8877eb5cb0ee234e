"""params.yaml as frozen, typed models.

The file holds `defaults` and `tasks.<name>`, each with the same sections; a task's section is merged over the default one. `fleet` beside them is about all tasks together.
DVC tracks the two raw sections (`defaults.tune`, `tasks.<name>.tune`), the code sees the merged and typed one.
All errors are collected and reported together, each with the dotted path of the place in the file that holds it.
The file is read as YAML 1.2 by the parser DVC uses, so that `yes`, `no` and `on` can be labels and `1e-3` is a number.

section: what all are made of; ingest, data, prompt, tune, evaluation, gate, promotion, deployment, execution: the sections; task: all of them together, and reading the file
"""

from pipeline.params.behaviour import (
    BUILT_IN_SWAPS,
    BehaviourParams,
    DirectionalTest,
    Edit,
    InvarianceTest,
    MinimumFunctionalityTest,
    PairFile,
    Perturbation,
)
from pipeline.params.data import (
    DriftParams,
    ExpectationParams,
    ExternalTest,
    IgnoredPart,
    NearDuplicateParams,
    ProfileParams,
    SplitParams,
    ValidateParams,
)
from pipeline.params.deployment import DeploymentParams, FleetParams, Notification, Occasion, Trigger, WorkPool
from pipeline.params.evaluation import UNKNOWN_GROUP, AssessFairnessParams, ColumnGroups, CompareParams, TextGroups, intersection_name
from pipeline.params.execution import ExecutionParams
from pipeline.params.free_text import GenerationParams, RowMetric
from pipeline.params.gate import (
    BehaviourThresholds,
    ChangeThreshold,
    CostParams,
    DegeneracyThreshold,
    DifferenceThreshold,
    GateParams,
    GroupThreshold,
    Guard,
    RelativeDifferenceThreshold,
    SliceParams,
    SliceThreshold,
    ValueThreshold,
    gate_metrics,
)
from pipeline.params.ingest import Columns, FileSource, HubDatasetSource, IngestParams, PackageFileSource, SqlSource
from pipeline.params.promotion import PromotionParams
from pipeline.params.prompt import PromptParams
from pipeline.params.section import placeholders
from pipeline.params.task import SECTIONS, TaskParams, load, load_fleet, load_task, load_tasks
from pipeline.params.tune import Init, Lora, LoraBaselineParams, PlainInit, TrialsParams, TunedPromptInit, TuneParams

__all__ = [
    "BUILT_IN_SWAPS",
    "SECTIONS",
    "UNKNOWN_GROUP",
    "AssessFairnessParams",
    "BehaviourParams",
    "BehaviourThresholds",
    "ChangeThreshold",
    "ColumnGroups",
    "Columns",
    "CompareParams",
    "CostParams",
    "DegeneracyThreshold",
    "DeploymentParams",
    "DifferenceThreshold",
    "DirectionalTest",
    "DriftParams",
    "Edit",
    "ExecutionParams",
    "ExpectationParams",
    "ExternalTest",
    "FileSource",
    "FleetParams",
    "GateParams",
    "GenerationParams",
    "GroupThreshold",
    "Guard",
    "HubDatasetSource",
    "IgnoredPart",
    "IngestParams",
    "Init",
    "InvarianceTest",
    "Lora",
    "LoraBaselineParams",
    "MinimumFunctionalityTest",
    "NearDuplicateParams",
    "Notification",
    "Occasion",
    "PackageFileSource",
    "PairFile",
    "Perturbation",
    "PlainInit",
    "ProfileParams",
    "PromotionParams",
    "PromptParams",
    "RelativeDifferenceThreshold",
    "RowMetric",
    "SliceParams",
    "SliceThreshold",
    "SplitParams",
    "SqlSource",
    "TaskParams",
    "TextGroups",
    "TrialsParams",
    "Trigger",
    "TuneParams",
    "TunedPromptInit",
    "ValidateParams",
    "ValueThreshold",
    "WorkPool",
    "gate_metrics",
    "intersection_name",
    "load",
    "load_fleet",
    "load_task",
    "load_tasks",
    "placeholders",
]
