"""Adapters on the tiny base models: one family for each architecture, every method, and a few examples."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.methods import MethodSettings
from pipeline.engine.objectives import Classification
from pipeline.engine.peft_adapter import LoraSettings, build_peft_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.support import METHODS, SUPPORT
from pipeline.engine.template import Verbalizers

FAMILIES = {"decoder": "mistral_sliding", "encoder_decoder": "t5", "encoder": "bert"}
LOADERS = {"mistral_sliding": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM, "bert": AutoModelForSequenceClassification}
SETTINGS = {
    **{name: MethodSettings(name=name) for name in METHODS if name != "lora"},
    "lora": LoraSettings(rank=2, alpha=4),
    "p_tuning with LSTM": MethodSettings(name="p_tuning", encoder="LSTM", encoder_hidden_size=8),
    "prefix_tuning with projection": MethodSettings(name="prefix_tuning", projection=True, encoder_hidden_size=8),
}
CASES = [(FAMILIES[architecture], method) for method in SETTINGS for architecture in SUPPORT[method.split()[0]]]
HEAD = (20, 21)
OWN = [[30, 31, 32, 33, 34, 35, 36, 37], [40], [50, 51, 52]]
EXAMPLES = [Example(own, label) for label, own in enumerate(OWN)]
SINGLE = Classification(Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))
SEVERAL = Verbalizers(("a", "b", "c"), ((60,), (61, 70), (62, 71, 72)))
TOY = [Example([30 + 10 * (number % 3), 25, *range(70, 70 + number % 4)], number % 3) for number in range(24)]


def start(base, tokens=4):
    text = Initialisation(kind="text", text="the plane was late and nobody said a word")
    return initial_embeddings(base=base, num_virtual_tokens=tokens, initialisation=text, seed=0)


def module_of(base, method, *, seed=0, **more):
    return build_peft_module(base=base, settings=SETTINGS[method], embeddings=start(base), seed=seed, **more)


def learner_of(base, modules, objective=SINGLE, **more):
    return PeftLearner(base=base, head=HEAD, objective=objective, modules=modules, **more)


def steps(learner, trials=(0,), count=2):
    """A few optimiser steps; LoRA's first factor has no gradient in the first."""
    optimisers = [torch.optim.AdamW(learner.modules[trial].parameters(), lr=0.05) for trial in trials]
    for _ in range(count):
        for optimiser in optimisers:
            optimiser.zero_grad()
        learner.backward(dict.fromkeys(trials, EXAMPLES), 1 / 3)
        for optimiser in optimisers:
            optimiser.step()


def copied(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}
