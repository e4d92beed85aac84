"""The sampling parameters of a model in the table: `defaults`, which a request may override, and `force`.

Source: the README of llama.cpp's llama-server, and OpenAI's chat completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from appliance.models.table.section import Section

Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Whole = Annotated[int, Field(ge=-(2**31), le=2**32 - 1, strict=True)]
Unit = Annotated[Number, Field(ge=0, le=1)]
Stop = Annotated[tuple[str, ...], Field(max_length=16)]


class SamplingFields(Section):
    """How tokens are chosen, by the names of the fields of a request. null = not set."""

    temperature: Annotated[Number, Field(ge=0, le=10)] | None = Field(
        default=None, description="How much chance there is; 0 = always the likeliest token"
    )
    top_p: Unit | None = Field(
        default=None, description="Only the likeliest tokens that reach this sum of probabilities"
    )
    top_k: Whole | None = Field(default=None, description="0 = all tokens")
    min_p: Unit | None = Field(
        default=None, description="Only tokens at least so likely as this part of the likeliest"
    )
    typical_p: Unit | None = Field(default=None, description="Locally typical sampling; 1 = off")
    top_n_sigma: Number | None = Field(
        default=None, description="Only tokens within so many standard deviations of the likeliest; -1 = off"
    )
    xtc_probability: Unit | None = Field(
        default=None, description="How often the likeliest tokens are removed; 0 = never"
    )
    xtc_threshold: Unit | None = Field(
        default=None, description="From which probability tokens may be removed by xtc_probability"
    )
    dynatemp_range: Number | None = Field(
        default=None, description="Range of a temperature that changes; 0 = off"
    )
    dynatemp_exponent: Number | None = Field(
        default=None, description="Exponent of a temperature that changes"
    )
    max_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="Also stands for max_completion_tokens and n_predict of a request"
    )
    min_tokens: Annotated[Whole, Field(ge=0)] | None = Field(
        default=None, description="Tokens before a stop is allowed; of vLLM and SGLang"
    )
    stop: str | Stop | None = Field(default=None, description="Texts at which generation ends")
    seed: Whole | None = Field(default=None, description="Of the random numbers; -1 = another one each time")
    presence_penalty: Number | None = Field(
        default=None, description="Penalty of tokens that are there already"
    )
    frequency_penalty: Number | None = Field(
        default=None, description="Penalty of tokens by how often they are there"
    )
    repeat_penalty: Number | None = Field(default=None, description="Penalty of repetitions; 1 = none")
    repetition_penalty: Number | None = Field(default=None, description="repeat_penalty of vLLM and SGLang")
    repeat_last_n: Whole | None = Field(
        default=None, description="How many tokens back repetitions count; 0 = none, -1 = the whole context"
    )
    dry_multiplier: Number | None = Field(default=None, description="Strength of the DRY penalty; 0 = off")
    dry_base: Number | None = Field(default=None, description="Base of the DRY penalty")
    dry_allowed_length: Whole | None = Field(
        default=None, description="Longest repetition without a DRY penalty, in tokens"
    )
    dry_penalty_last_n: Whole | None = Field(
        default=None, description="How many tokens back DRY looks; -1 = the whole context"
    )
    dry_sequence_breakers: tuple[str, ...] | None = Field(
        default=None, description="Texts at which a repetition ends for DRY"
    )
    mirostat: Annotated[Whole, Field(ge=0, le=2)] | None = Field(
        default=None, description="0 = off, 1 = Mirostat, 2 = Mirostat 2.0"
    )
    mirostat_tau: Number | None = Field(default=None, description="Target entropy of Mirostat")
    mirostat_eta: Number | None = Field(default=None, description="Learning rate of Mirostat")
    samplers: tuple[str, ...] | None = Field(default=None, description="Which samplers, in this order")
    logit_bias: dict[str, Number] | None = Field(
        default=None, description="Added to the score of a token, by its number"
    )
    ignore_eos: bool | None = Field(default=None, description="Go on where the model would end")
    grammar: str | None = Field(default=None, description="A grammar (GBNF) that the text follows")
    cache_prompt: bool | None = Field(
        default=None, description="Reuse the cache of a former prompt with the same beginning"
    )
    n_keep: Whole | None = Field(
        default=None, description="Tokens of the prompt that are kept when the context is full"
    )
    response_format: dict[str, Any] | None = Field(
        default=None, description="Form of the response, such as {type: json_object}"
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        default=None, description="How much a model reasons before it answers"
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = Field(
        default=None, description="How reasoning is told apart from the text"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="For the chat template, such as {enable_thinking: false}"
    )

    def fields_set(self) -> dict[str, Any]:
        """Return what is set, as fields of a request."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What the table says about the requests for a model.

    Attributes:
        defaults: Fields that a request gets where it has none of its own.
        force: Fields that a request gets, whatever it says.
        system_prompt: The system message of chats that have none; "" = none.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    force: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.defaults or self.force or self.system_prompt)


NO_REQUEST_SETTINGS = RequestSettings()
