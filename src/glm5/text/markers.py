"""The strings that structure a GLM conversation; in GLM's vocabulary each of them is one special token.

A turn has no end token of its own: it ends where the model writes the role token of the next turn. A call of a tool
ends with `<|observation|>`, an answer with `<|user|>`.
"""

from enum import StrEnum
from typing import Literal, get_args

Generation = Literal["glm-4.5", "glm-5"]
"""Which layout: GLM-4.5 and 4.6 put newlines between the blocks, GLM-4.7 and everything after it put none."""

GENERATIONS: tuple[Generation, ...] = get_args(Generation)

STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")


class Marker(StrEnum):
    """The markers that a model writes inside its own turn."""

    THINK = "<think>"
    END_THINK = "</think>"
    TOOL_CALL = "<tool_call>"
    END_TOOL_CALL = "</tool_call>"
    ARG_KEY = "<arg_key>"
    END_ARG_KEY = "</arg_key>"
    ARG_VALUE = "<arg_value>"
    END_ARG_VALUE = "</arg_value>"
