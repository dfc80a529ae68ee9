"""A shell command taken apart into the programs it would run, because a prefix says nothing.

`ls; rm -rf ~` begins with `ls`. So rules are matched on parsed commands: every part of a list or pipe, of
substitutions and subshells, of `sh -c '…'`, `sudo`, `env`, `xargs`, `find -exec`, and of scripts on standard input.
This is for judging intent and telling people what a command would do; what holds a command back is the sandbox.
"""

import os
import re
from dataclasses import dataclass, field

_OPERATORS = ("&&", "||", ";;", "|&", ";", "|", "&", "\n", "(", ")")
_REDIRECTION = re.compile(r"\d*(<<<|<<-|<<|>>|>\||<>|>&|<&|&>>|&>|>|<)")
_KEYWORDS = {"if", "then", "elif", "else", "do", "while", "until", "!", "{", "time"}
_ENDS = {"fi", "done", "esac", "}"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "busybox"}
# Programs that run another program, and how many of their own words (beside options) come before it.
_WRAPPERS = {
    "sudo": 0, "doas": 0, "env": 0, "nohup": 0, "setsid": 0, "nice": 0, "ionice": 0, "time": 0, "exec": 0,
    "command": 0, "builtin": 0, "stdbuf": 0, "xargs": 0, "timeout": 1, "chroot": 1, "flock": 1, "watch": 0, "strace": 0,
}  # fmt: skip
_OPTIONS_WITH_VALUE = {
    "sudo": {"-u", "-g", "-h", "-p", "-C", "-D"}, "env": {"-u", "-C", "-S"}, "nice": {"-n"}, "ionice": {"-c", "-n"},
    "xargs": {"-I", "-n", "-P", "-L", "-d", "-s", "-E", "-a"}, "timeout": {"-s", "-k"}, "watch": {"-n"},
    "stdbuf": {"-i", "-o", "-e"}, "flock": {"-w", "-E"}, "strace": {"-o", "-e"},
}  # fmt: skip


class Unparseable(Exception):
    """The command cannot be taken apart: nobody knows what it would do."""


@dataclass(frozen=True, slots=True)
class Command:
    """One program that would run."""

    argv: tuple[str, ...]
    writes: tuple[str, ...] = ()  # files that its output is sent to
    stdin: str = ""  # the text of a here-document
    background: bool = False
    dynamic: bool = False  # a word holds something only the shell would know
    via: tuple[str, ...] = ()  # programs it is run by: sudo, xargs, …


@dataclass(slots=True)
class _Part:
    """A command while it is read."""

    words: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    stdin: str = ""
    dynamic: bool = False
    heredocs: list[tuple[str, bool]] = field(default_factory=list)


def parse(text: str) -> list[Command]:
    """Every program that a shell command would run, in order, those that run others before those.

    Raises:
        Unparseable: an open quote or bracket, or nesting without end.
    """
    return _Parser(text, 0).parse()


class _Parser:
    def __init__(self, text: str, depth: int) -> None:
        if depth > 8:
            raise Unparseable("nested too deep")
        self._text, self._depth, self._at = text, depth, 0
        self._found: list[Command] = []

    def parse(self) -> list[Command]:
        part = _Part()
        pending: list[_Part] = []  # whose here-documents begin after this line
        while self._at < len(self._text):
            if self._text[self._at] in " \t\r":
                self._at += 1
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
            elif self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._text.startswith(("<(", ">("), self._at):
                part.words.append(self._word(part))
            elif redirection := _REDIRECTION.match(self._text, self._at):
                self._redirect(redirection, part)
            elif operator := next((op for op in _OPERATORS if self._text.startswith(op, self._at)), ""):
                self._at += len(operator)
                if part.heredocs:
                    pending.append(part)
                if operator == "\n":
                    self._heredocs([*pending])
                    pending = []
                if not part.heredocs:
                    self._close(part, operator == "&")
                part = _Part()
            else:
                part.words.append(self._word(part))
        for waiting in [*pending, part]:
            self._close(waiting, False)
        return self._found

    def _redirect(self, match: re.Match[str], part: _Part) -> None:
        self._at = match.end()
        kind = match.group(1)
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1
        target = self._word(part)
        if kind in ("<<", "<<-"):
            part.heredocs.append((target, kind == "<<-"))
        elif kind == "<<<":
            part.stdin += target
        elif ">" in kind and not (kind == ">&" and (target.isdecimal() or target == "-")):
            part.writes.append(target)

    def _heredocs(self, parts: list[_Part]) -> None:
        """Read the bodies that follow a line, and close the commands they belong to."""
        for part in parts:
            for delimiter, tabs in part.heredocs:
                while self._at < len(self._text):
                    end = self._text.find("\n", self._at)
                    end = len(self._text) if end < 0 else end
                    line = self._text[self._at : end]
                    self._at = end + 1
                    if (line.lstrip("\t") if tabs else line) == delimiter:
                        break
                    part.stdin += line + "\n"
            self._close(part, False)

    def _word(self, part: _Part) -> str:
        """The next word, without its quotes; commands substituted in it are found on the way."""
        word = ""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in " \t\r\n;|&()<>":
                if char in "<>" and self._text.startswith(("<(", ">("), self._at):
                    self._at += 1
                    word += self._substitution(part)
                    continue
                break
            self._at += 1
            if char == "'":
                word += self._until("'")
            elif char == '"':
                word += self._double_quoted(part)
            elif char == "\\":
                word += self._text[self._at : self._at + 1].replace("\n", "")
                self._at += 1
            elif char == "$":
                word += self._dollar(part)
            elif char == "`":
                self._nested(self._until("`"))
                part.dynamic = True
                word += "`…`"
            else:
                part.dynamic = part.dynamic or char in "*?["
                word += char
        return os.path.expanduser(word) if word.startswith("~") else word

    def _double_quoted(self, part: _Part) -> str:
        word = ""
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == '"':
                return word
            if char == "\\" and self._text[self._at : self._at + 1] in ('"', "\\", "$", "`", "\n"):
                word += self._text[self._at]
                self._at += 1
            elif char == "$":
                word += self._dollar(part)
            elif char == "`":
                self._nested(self._until("`"))
                part.dynamic = True
                word += "`…`"
            else:
                word += char
        raise Unparseable("a double quote is never closed")

    def _dollar(self, part: _Part) -> str:
        if self._text.startswith("(", self._at):
            return self._substitution(part)
        if self._text.startswith("'", self._at):  # $'…' with escapes
            self._at += 1
            return self._until("'").encode("utf-8", "replace").decode("unicode_escape", "replace")
        match = re.compile(r"\{(\w+)[^}]*\}|(\w+|[@*#?$!-])").match(self._text, self._at)
        if match is None:
            return "$"
        self._at = match.end()
        name = match.group(1) or match.group(2)
        if name == "HOME":
            return os.path.expanduser("~")
        part.dynamic = True
        return f"${name}"

    def _substitution(self, part: _Part) -> str:
        """`(…)` behind a `$`, `<` or `>`: what runs in it is found, what it prints is not known."""
        start, level, self._at = self._at + 1, 1, self._at + 1
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == "'":
                self._until("'")
            elif char == "\\":
                self._at += 1
            level += {"(": 1, ")": -1}.get(char, 0)
            if level == 0:
                inner = self._text[start : self._at - 1]
                if not inner.startswith("("):  # $((…)) is arithmetic
                    self._nested(inner)
                part.dynamic = True
                return "$(…)"
        raise Unparseable("a bracket is never closed")

    def _until(self, quote: str) -> str:
        end = self._text.find(quote, self._at)
        if end < 0:
            raise Unparseable(f"a {quote} is never closed")
        word = self._text[self._at : end]
        self._at = end + 1
        return word

    def _nested(self, text: str) -> None:
        self._found += _Parser(text, self._depth + 1).parse()

    def _close(self, part: _Part, background: bool) -> None:
        """A command is complete: record it, and what it would run."""
        words = part.words
        while words and (words[0] in _KEYWORDS or words[0] in _ENDS or _ASSIGNMENT.match(words[0])):
            words = words[1:]
        if words or part.writes:
            self._unwrap(Command(tuple(words), tuple(part.writes), part.stdin, background, part.dynamic))

    def _unwrap(self, command: Command) -> None:
        self._found.append(command)
        if not command.argv:
            return
        program, *rest = command.argv
        program = os.path.basename(program)
        via = (*command.via, program)
        if program in _SHELLS:
            script = rest[rest.index("-c") + 1] if "-c" in rest[:-1] else command.stdin
            script = script or next((rest[i + 1] for i, w in enumerate(rest[:-1]) if re.fullmatch(r"-\w*c", w)), "")
            if script:
                self._nested(script)
        elif program == "eval":
            self._nested(" ".join(rest))
        elif program == "find":
            self._find(rest, via)
        elif program in _WRAPPERS and len(via) <= 8:
            inner = _inner(program, rest)
            if inner:
                self._unwrap(Command(inner, (), command.stdin, command.background, command.dynamic, via))

    def _find(self, words: list[str], via: tuple[str, ...]) -> None:
        for index, word in enumerate(words):
            if word in ("-exec", "-execdir", "-ok", "-okdir"):
                inner = []
                for following in words[index + 1 :]:
                    if following in (";", "+"):
                        break
                    inner.append(following)
                if inner:
                    tops = [w for w in words[:index] if not w.startswith("-")][:1] or ["."]
                    replaced = tuple(tops[0] if w == "{}" else w for w in inner)
                    self._unwrap(Command(replaced, via=via, dynamic=True))


def _inner(program: str, words: list[str]) -> tuple[str, ...]:
    """What a wrapper runs."""
    valued, skip = _OPTIONS_WITH_VALUE.get(program, set()), _WRAPPERS[program]
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            index += 1
            break
        if word.startswith("-"):
            index += 2 if word in valued else 1
        elif program == "env" and _ASSIGNMENT.match(word):
            index += 1
        elif skip:
            skip -= 1
            index += 1
        else:
            break
    return tuple(words[index:])
