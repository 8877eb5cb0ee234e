"""Which method tunes which kind of base model: the tables of docs/methods.md as data.

They are read when params are checked, long before a model is loaded, so this module imports nothing but the errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import BaseModelError

Architecture = Literal["decoder", "encoder_decoder", "encoder"]
Method = Literal["prompt_tuning", "residual_prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning", "lora"]
Option = Literal["gradient checkpointing", "generation"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
METHODS: tuple[Method, ...] = get_args(Method)
OF_EMBEDDINGS: tuple[Method, ...] = ("prompt_tuning", "residual_prompt_tuning", "p_tuning", "multitask_prompt_tuning")

# How each method runs on each architecture. `shared prefix` is the fast pass; a decoder-only family that it cannot serve (one with
# recurrent attention, say) runs as `PEFT`, which is PEFT's own forward pass. On an encoder every method also trains the classification head.
SUPPORT: Mapping[Method, Mapping[Architecture, str]] = {
    "prompt_tuning": {"decoder": "shared prefix", "encoder_decoder": "PEFT", "encoder": "PEFT, with head"},
    "residual_prompt_tuning": {"decoder": "shared prefix", "encoder_decoder": "PEFT", "encoder": "PEFT, with head"},
    "p_tuning": {"decoder": "shared prefix", "encoder_decoder": "PEFT", "encoder": "PEFT, with head"},
    "multitask_prompt_tuning": {"decoder": "shared prefix", "encoder_decoder": "PEFT", "encoder": "PEFT, with head"},
    "prefix_tuning": {"decoder": "shared prefix", "encoder_decoder": "PEFT, decoder self-attention only", "encoder": "PEFT, with head"},
    "lora": {"decoder": "PEFT", "encoder_decoder": "PEFT", "encoder": "PEFT, with head"},
}


@dataclass(frozen=True)
class Refusal:
    """What these methods cannot do on these architectures, and why."""

    option: Option
    methods: tuple[Method, ...]
    architectures: tuple[Architecture, ...]
    reason: str


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "gradient checkpointing",
        ("prefix_tuning",),
        ARCHITECTURES,
        "the prefix is a key/value cache, which gradient checkpointing drops",
    ),
    Refusal(
        "gradient checkpointing",
        OF_EMBEDDINGS,
        ("decoder",),
        "the shared-prefix pass keeps what the examples have in common in a key/value cache, which gradient checkpointing drops",
    ),
    Refusal("generation", METHODS, ("encoder",), "an encoder writes no text"),
    Refusal("generation", METHODS, ("encoder_decoder",), "PEFT's forward pass is used for ranking labels only"),
    Refusal("generation", ("lora",), ("decoder",), "PEFT's forward pass is used for ranking labels only"),
)


def check_supported(*, method: str, architecture: str, gradient_checkpointing: bool = False, generation: bool = False) -> str:
    """How the method runs on the architecture (see SUPPORT).

    Raises BaseModelError with the reason for a combination that is refused, and for a name that the tables do not have.
    """
    if method not in METHODS:
        raise BaseModelError(f"tune.method is {method!r}, expected one of {', '.join(METHODS)}.")
    if architecture not in ARCHITECTURES:
        raise BaseModelError(f"The base model's architecture is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}.")
    asked = {"gradient checkpointing": gradient_checkpointing, "generation": generation}
    for refusal in REFUSALS:
        if asked[refusal.option] and method in refusal.methods and architecture in refusal.architectures:
            raise BaseModelError(
                f"{refusal.option} is refused for the method {method} on a base model of the architecture {architecture}: {refusal.reason}. "
                "Do without it, or choose another method or base model; docs/methods.md has the tables."
            )
    return SUPPORT[method][architecture]
