"""A program that plays the model, for tests and demonstrations: only the thinking is written down beforehand.

The program knows nothing but the conversation: it answers turn n with its step n. So it goes on after any
interruption, in any process, and over HTTP just as well (`serve`).
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from glm5.errors import UsageError
from glm5.text.messages import Message, Tool, ToolCall, conversation_from_openai

Step = Message | ToolCall | Sequence[ToolCall]


class Program:
    """A script for `ScriptedEndpoint`: step n of the work is its answer to turn n."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """A call, or several, stand for a message that makes them. Raises UsageError without steps."""
        if not steps:
            raise UsageError("a scripted model needs at least one step")
        self._steps = [_message(step) for step in steps]

    @classmethod
    def load(cls, path: Path) -> "Program":
        """From a JSON list of steps, each `{"tool": …, "arguments": …}` or `{"content": …}`, with an optional
        `reasoning`. Raises UsageError for anything else."""
        try:
            raw = json.loads(path.read_text("utf-8"))
            steps = [
                Message(
                    "assistant",
                    step.get("content", ""),
                    step.get("reasoning"),
                    (ToolCall(step["tool"], step.get("arguments", {})),) if "tool" in step else (),
                )
                for step in raw
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is no list of steps for a scripted model: {error!r}") from error
        return cls(steps)

    def __call__(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Message:
        """The next step; the last one again and again once all are done."""
        turn = sum(message.role == "assistant" for message in messages)
        step = self._steps[min(turn, len(self._steps) - 1)]
        calls = tuple(ToolCall(c.name, c.arguments, f"t{turn}-{i}") for i, c in enumerate(step.tool_calls))
        return Message("assistant", step.content, step.reasoning_content, calls)


@contextmanager
def serve(program: Program) -> Iterator[str]:
    """The program behind an OpenAI-compatible URL, which is given; streams when it is asked to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = program(conversation_from_openai(body["messages"]), ()).to_openai()
            reason = "tool_calls" if message.get("tool_calls") else "stop"
            usage = {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(str(message)) // 4}
            if body.get("stream"):
                delta = message | {
                    "tool_calls": [{"index": i, **c} for i, c in enumerate(message.get("tool_calls", ()))]
                }
                chunks = [{"delta": delta}, {"delta": {}, "finish_reason": reason}]
                lines = [json.dumps({"choices": [chunk], "usage": usage}) for chunk in chunks]
                answer = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
            else:
                choice = {"message": message, "finish_reason": reason}
                answer = json.dumps({"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _message(step: Step) -> Message:
    if isinstance(step, Message):
        return step
    calls = (step,) if isinstance(step, ToolCall) else tuple(step)
    return Message("assistant", tool_calls=calls)
