"""Which method tunes which kind of base model: the tables of docs/methods.md as data.

They are read when params are checked, long before a model is loaded, so this module imports nothing but the errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import BaseModelError

Architecture = Literal["decoder", "encoder_decoder", "encoder"]
Method = Literal["prompt_tuning", "residual_prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning", "lora"]
Option = Literal["gradient checkpointing", "torch.compile", "generation", "a tuned prompt as start"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
METHODS: tuple[Method, ...] = get_args(Method)
OF_EMBEDDINGS: tuple[Method, ...] = ("prompt_tuning", "residual_prompt_tuning", "p_tuning", "multitask_prompt_tuning")

# The `model_type` of the families that fill masks and classify and are no encoder-decoders, with transformers 5.23. A test compares
# them with transformers' own tables, which decide when the model is loaded and take two seconds and torch to import.
ENCODER_FAMILIES = frozenset({
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "esm", "esmc", "eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "longformer", "luke",
    "megatron-bert", "mobilebert", "modernbert", "modernvbert", "mpnet", "mra", "nomic_bert", "nystromformer", "perceiver", "reformer",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "tapas", "ultrabert", "ultravbert", "xlm",
    "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
})  # fmt: skip
DECODER_CLASSES = ("ForCausalLM", "LMHeadModel")

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
    Refusal("torch.compile", METHODS, ("encoder_decoder", "encoder"), "only the shared-prefix pass is compiled"),
    Refusal("torch.compile", ("lora",), ("decoder",), "only the shared-prefix pass is compiled"),
    Refusal("generation", METHODS, ("encoder",), "an encoder writes no text"),
    Refusal("generation", METHODS, ("encoder_decoder",), "PEFT's forward pass is used for ranking labels only"),
    Refusal("generation", ("lora",), ("decoder",), "PEFT's forward pass is used for ranking labels only"),
    Refusal(
        "a tuned prompt as start", METHODS, ("encoder_decoder", "encoder"), "tuned prompts of decoders are the only ones read as a start"
    ),
    Refusal("a tuned prompt as start", ("lora",), ("decoder",), "LoRA has no virtual tokens"),
)


def architecture_stated(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture that a `config.json` describes, or None where only loading the model will tell (see base_model.architecture_of)."""
    if config.get("is_encoder_decoder") is True:
        return "encoder_decoder"
    if config.get("model_type") in ENCODER_FAMILIES and not config.get("is_decoder"):
        return "encoder"
    classes: Any = config.get("architectures")
    if isinstance(classes, list) and classes and str(classes[0]).endswith(DECODER_CLASSES):
        return "decoder"
    return None


def refusal_of(option: Option, method: str, architecture: str) -> str | None:
    """Why the option is refused for this method on this architecture, or None when it is not."""
    for refusal in REFUSALS:
        if refusal.option == option and method in refusal.methods and architecture in refusal.architectures:
            return f"{option} is refused for the method {method} on a base model of the architecture {architecture}: {refusal.reason}"
    return None


def check_supported(
    *,
    method: str,
    architecture: str,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    generation: bool = False,
    tuned_prompt_start: bool = False,
) -> str:
    """How the method runs on the architecture (see SUPPORT).

    Raises BaseModelError with the reason for a combination that is refused, and for a name that the tables do not have.
    """
    if method not in METHODS:
        raise BaseModelError(f"tune.method is {method!r}, expected one of {', '.join(METHODS)}.")
    if architecture not in ARCHITECTURES:
        raise BaseModelError(f"The base model's architecture is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}.")
    asked: dict[Option, bool] = {
        "gradient checkpointing": gradient_checkpointing,
        "torch.compile": compiled,
        "generation": generation,
        "a tuned prompt as start": tuned_prompt_start,
    }
    for option, wanted in asked.items():
        reason = refusal_of(option, method, architecture) if wanted else None
        if reason:
            raise BaseModelError(f"{reason}. Do without it, or choose another method or base model; docs/methods.md has the tables.")
    return SUPPORT[method][architecture]
