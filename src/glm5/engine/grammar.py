"""Structured output: at every step only the tokens that keep the text inside a grammar may be sampled (xgrammar).

A tool grammar speaks of special tokens (`<tool_call>`, `<arg_key>`, ...), and these must be the tokens themselves: the
same letters spelled in pieces are not a call. To the grammar a special token therefore looks like one private
character, and ordinary tokens with bytes of such characters are kept out.
"""

import json
from collections.abc import Sequence
from typing import Any

import xgrammar
from torch import Tensor

from glm5.engine.records import Grammar
from glm5.errors import UsageError
from glm5.model.config import ModelConfig
from glm5.text.markers import Marker
from glm5.text.tokenizer import Tokenizer
from glm5.text.values import STRING, argument_types

_PRIVATE = 0xF0000  # first code point of the plane that stands for special tokens; UTF-8 lead byte 0xF3
_PRIVATE_LEAD = 0xF3

_JSON_RULES = r"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" space (member (space "," space member)*)? space "}"
member ::= string space ":" space value
array ::= "[" space (value (space "," space value)*)? space "]"
string ::= "\"" character* "\""
character ::= [^"\\\x00-\x1F\U000F0000-\U000FFFFD] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)
hex ::= [0-9a-fA-F]
number ::= integer ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
integer ::= "-"? ("0" | [1-9] [0-9]*)
boolean ::= "true" | "false"
space ::= " "?
text ::= [^\U000F0000-\U000FFFFD]*
"""


class GrammarGuide:
    """Follows one sequence through a compiled grammar.

    It is armed at once, or where a thought is open, behind the token that closes it. Until then no token may come that
    ends the thought in another way: the turn would be over, or a call begun, and the grammar never asked.
    """

    def __init__(
        self, compiled: xgrammar.CompiledGrammar, vocab_size: int, end_think: int | None, escapes: Sequence[int]
    ) -> None:
        """Wait for `end_think`, if there is one, and forbid `escapes` until it comes."""
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bitmask = xgrammar.allocate_token_bitmask(1, vocab_size)
        self._end_think, self._escapes = end_think, list(escapes)

    def mask(self, logits: Tensor) -> None:
        """Set the logits [V] of tokens that may not come next to -inf."""
        if self._end_think is not None:
            logits[self._escapes] = float("-inf")
        elif not self._matcher.is_terminated():
            self._matcher.fill_next_token_bitmask(self._bitmask)
            xgrammar.apply_token_bitmask_inplace(logits[None], self._bitmask)

    def observe(self, token: int) -> None:
        """Take the token that was sampled."""
        if token == self._end_think:
            self._end_think = None
        elif self._end_think is None and not self._matcher.is_terminated():
            self._matcher.accept_token(token)


class GrammarCompiler:
    """Compiles grammars for one tokenizer; equal grammars are compiled once."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._tokenizer, self._vocab_size = tokenizer, config.vocab_size
        stops = sorted(set(tokenizer.stop_ids) | set(config.eos_token_id))
        begins_call = tokenizer.special_ids.get(Marker.TOOL_CALL)
        self._escapes = [*stops] if begins_call is None else [*stops, begins_call]
        self._characters = {name: chr(_PRIVATE + i) for i, name in enumerate(tokenizer.special_ids)}
        special = {token: self._characters[name].encode() for name, token in tokenizer.special_ids.items()}
        ordinary: list[bytes] = []
        for token in range(self._vocab_size):
            known = tokenizer.is_token(token) and token not in special
            raw = tokenizer.token_bytes(token) if known else b""
            ordinary.append(b"" if _PRIVATE_LEAD in raw else raw)
        with_special = [special.get(token, raw) for token, raw in enumerate(ordinary)]
        for stop in stops:
            with_special[stop] = ordinary[stop] = b""
        self._plain = self._backend(ordinary, stops)
        self._tools = self._backend(with_special, stops)

    def guide(self, grammar: Grammar, thinking: bool) -> GrammarGuide:
        """A guide for one sequence; `thinking` when its prompt ends inside a thought.

        Raises:
            UsageError: the grammar cannot be compiled, with the reason.
        """
        end_think = None
        if grammar.after_thinking and thinking:
            end_think = self._tokenizer.special_ids[Marker.END_THINK]
        return GrammarGuide(self._compile(grammar), self._vocab_size, end_think, self._escapes)

    def _compile(self, grammar: Grammar) -> xgrammar.CompiledGrammar:
        value = grammar.value
        try:
            match grammar.kind:
                case "json_schema":
                    return self._plain.compile_json_schema(json.dumps(value), any_whitespace=False)
                case "regex":
                    return self._plain.compile_regex(value)
                case "choice":
                    if not value:
                        raise ValueError("there is nothing to choose from")
                    return self._plain.compile_grammar("root ::= " + " | ".join(_quoted(text) for text in value))
                case "ebnf":
                    return self._plain.compile_grammar(value)
                case "tool_calls":
                    return self._tools.compile_grammar(self._tool_grammar(value))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"the {grammar.kind} grammar cannot be compiled: {error}") from error

    def _tool_grammar(self, value: dict[str, Any]) -> str:
        """EBNF of calls in GLM's form: name, then for each argument its key and its value, raw text or JSON."""
        mark = {marker: _quoted(self._characters[marker]) for marker in Marker}
        rules, calls = [], []
        for number, tool in enumerate(value["tools"]):
            parameters = tool.get("parameters") or {}
            arguments = []
            for key in parameters.get("properties") or {}:
                name = f"{mark[Marker.ARG_KEY]} {_quoted(key)} {mark[Marker.END_ARG_KEY]}"
                content = f"{mark[Marker.ARG_VALUE]} {_contentrule(parameters, key)} {mark[Marker.END_ARG_VALUE]}"
                pair = f"{name} {content}"
                arguments.append(pair if key in parameters.get("required", ()) else f"({pair})?")
            body = " ".join([mark[Marker.TOOL_CALL], _quoted(tool["name"]), *arguments, mark[Marker.END_TOOL_CALL]])
            rules.append(f"call{number} ::= {body}")
            calls.append(f"call{number}")
        if not calls:
            raise ValueError("there is no tool to call")
        repeated = "+" if value.get("parallel") else ""
        return "\n".join([f"root ::= call{repeated}", "call ::= " + " | ".join(calls), *rules]) + _JSON_RULES

    def _backend(self, vocabulary: list[bytes], stops: list[int]) -> xgrammar.GrammarCompiler:
        info = xgrammar.TokenizerInfo(
            vocabulary, vocab_type=xgrammar.VocabType.RAW, vocab_size=self._vocab_size, stop_token_ids=stops
        )
        return xgrammar.GrammarCompiler(info, max_threads=1)


def _contentrule(parameters: dict[str, Any], key: str) -> str:
    """What may stand between the value markers of argument `key`."""
    schema = parameters["properties"][key]
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if choices:
        texts = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
        return "(" + " | ".join(_quoted(text) for text in texts) + ")"
    types = argument_types(parameters, key)
    if not types or types & STRING:
        return "text"
    return {
        frozenset({"integer"}): "integer",
        frozenset({"number"}): "number",
        frozenset({"boolean"}): "boolean",
        frozenset({"object"}): "object",
        frozenset({"array"}): "array",
    }.get(types, "value")


def _quoted(text: str) -> str:
    """A literal in EBNF."""
    return json.dumps(text, ensure_ascii=False)
