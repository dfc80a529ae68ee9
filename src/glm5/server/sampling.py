"""The part of a request body that all text surfaces share: which model, and how to sample.

Names and ranges are OpenAI's; what OpenAI lacks is spelled as vLLM spells it. Null means absent, and keys that we have
no use for are let pass, because clients send many.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glm5.engine.records import Grammar, RepetitionGuard, SamplingParams
from glm5.errors import UsageError

# What GLM-5 is recommended to be sampled with; /generate, which is for training, samples the bare distribution.
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.95


class Body(BaseModel):
    """A JSON body, read leniently."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class JsonSchema(Body):
    """The `json_schema` of a response format."""

    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """`response_format`: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: exactly one of these."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class SamplingBody(Body):
    """How to sample. Values that only the model can judge, such as token ids, are judged by the engine."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[int, float] | None = None
    n: int | None = Field(None, ge=1, le=16)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)

    def sampling_params(
        self,
        *,
        stop_ids: tuple[int, ...],
        logprobs: int | None = None,
        grammar: Grammar | None = None,
        thinking_budget: int | None = None,
    ) -> SamplingParams:
        """The engine's parameters; the caller sets `max_tokens` when the prompt's length is known."""
        return SamplingParams(
            temperature=_given(self.temperature, DEFAULT_TEMPERATURE),
            top_p=_given(self.top_p, DEFAULT_TOP_P),
            top_k=max(_given(self.top_k, 0), 0),  # -1 is how some clients say "off"
            min_p=_given(self.min_p, 0.0),
            repetition_penalty=_given(self.repetition_penalty, 1.0),
            presence_penalty=_given(self.presence_penalty, 0.0),
            frequency_penalty=_given(self.frequency_penalty, 0.0),
            seed=self.seed,
            stop_ids=() if self.ignore_eos else (*stop_ids, *(self.stop_token_ids or ())),
            logit_bias=self.logit_bias or {},
            logprobs=logprobs,
            n=self.n or 1,
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            grammar=grammar,
            thinking_budget=thinking_budget,
            repetition_guard=None if self.ignore_eos else RepetitionGuard(),
        )

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple.

        Raises:
            UsageError: one of them is empty.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise UsageError("stop: a stop string must not be empty")
        return stops


def read_grammar(
    response_format: ResponseFormat | None, structured: StructuredOutputs | None, *, after_thinking: bool
) -> Grammar | None:
    """What the answer must look like, from either spelling; None for free text.

    Raises:
        UsageError: both spellings, or not exactly one kind of structure.
    """
    if structured is not None:
        if response_format is not None and response_format.type != "text":
            raise UsageError("response_format and structured_outputs contradict each other; send one of them")
        values = {
            "json_schema": structured.json_schema,
            "regex": structured.regex,
            "choice": structured.choice,
            "ebnf": structured.grammar,
        }
        given = [Grammar(kind, value, after_thinking) for kind, value in values.items() if value is not None]  # type: ignore[arg-type]
        if len(given) != 1:
            raise UsageError("structured_outputs: give exactly one of json, regex, choice and grammar")
        return given[0]
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Grammar("json_schema", {"type": "object"}, after_thinking)
    if response_format.json_schema is None:
        raise UsageError("response_format: type json_schema needs json_schema.schema")
    return Grammar("json_schema", response_format.json_schema.json_schema, after_thinking)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
