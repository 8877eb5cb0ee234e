"""The section promotion: who makes a version champion, and which signatures its bundle needs. The flows use it, no stage does."""

from typing import Literal

from pydantic import model_validator

from pipeline.params.section import Section


class PromotionParams(Section):
    """What happens to a version after the gate.

    `approval`: auto promotes what the gate lets pass; manual asks a person for every version that the gate does not refuse; on_doubt asks
    only where the gate could not decide (INCONCLUSIVE or INSUFFICIENT). `allow_uncommitted`: whether a version made with uncommitted changes may
    become champion. `trusted_keys`: files of public keys, below the checkout.
    """

    approval: Literal["auto", "manual", "on_doubt"]
    allow_uncommitted: bool
    require_signature: bool
    trusted_keys: list[str]

    @model_validator(mode="after")
    def _keys_for_signatures(self) -> "PromotionParams":
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature is true and trusted_keys is empty; list the public keys that may sign")
        return self
