"""What runs next to the code under test: calls it with every test's arguments and says what came back, as JSON lines.

It is sent into the sandbox as text, so it imports nothing but the standard library. It knows no expected value.
"""

import json
import os
import sys
from typing import Any


def call_all(code: str, function: str, arguments: list[list[Any]]) -> list[dict[str, Any]]:
    """For every list of arguments `{"value": …}` or `{"error": the name of the exception}`."""
    names: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution.py", "exec"), names)
    except BaseException as error:
        return [{"error": type(error).__name__}] * len(arguments)
    results = []
    for values in arguments:
        try:
            value = names[function](*values)
            json.dumps(value)
            results.append({"value": value})
        except BaseException as error:  # SystemExit too: leaving early is no result
            results.append({"error": type(error).__name__})
    return results


def main() -> None:
    """Read a request from standard input, write the results; what the code prints goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for result in call_all(**json.load(sys.stdin)):
        print(json.dumps(result), file=output)
    output.flush()


if __name__ == "__main__":
    main()
