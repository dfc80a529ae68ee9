"""The line a person watches while a model trains: how far, how good, how fast, how long still."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from glm5.train.metrics import StepRecord

_QUIET_SECONDS = 20.0  # between lines when stderr is a file or a pipe


class ProgressLine:
    """A live bar on a terminal; a line now and then anywhere else."""

    def __init__(self, console: Console, total_tokens: int, done_tokens: int) -> None:
        self._console, self._total = console, total_tokens
        self._bits: float | None = None
        self._told = time.monotonic()
        self._began, self._begin_tokens = time.monotonic(), done_tokens
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("  {task.description}"), BarColumn(bar_width=24), TaskProgressColumn(),
                TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=console, speed_estimate_period=60)
            self._task = self._bar.add_task("training", total=total_tokens, completed=done_tokens, figures="")
            self._bar.start()

    def step(self, record: StepRecord) -> None:
        """Show one more step."""
        bits = "" if self._bits is None else f" · {self._bits:.3f} bits/byte"
        figures = f"loss {record.loss:.3f}{bits} · {record.tokens_per_second:,.0f} tok/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=record.tokens, figures=figures)
        elif time.monotonic() - self._told > _QUIET_SECONDS:
            self._told = time.monotonic()
            done = f"{record.tokens / self._total:4.0%} · step {record.step}"
            self._console.print(f"  {done} · {figures} · {self._left(record.tokens)} left")

    def evaluated(self, bits_per_byte: dict[str, float]) -> None:
        """Show a new held-out score."""
        self._bits = bits_per_byte["all"]

    def close(self, words: str = "") -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.stop()
        if words:
            self._console.print(f"  {words}")

    def _left(self, tokens: int) -> str:
        speed = (tokens - self._begin_tokens) / max(time.monotonic() - self._began, 1e-9)
        seconds = int((self._total - tokens) / max(speed, 1e-9))
        return f"{seconds // 60}:{seconds % 60:02d}"
