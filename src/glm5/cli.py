"""The command line: one short function a command.

Scripts rely on this: with `--json` a command prints exactly one JSON object on stdout, progress and words go to
stderr, and the exit code is 0 for done, 1 for failed, 2 for wrong use, 130 for interrupted. Heavy imports happen
inside the commands, so that help is instant and commands that need no torch run without it.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.table import Table

import glm5
from glm5.errors import GLM5Error, UsageError

app = typer.Typer(
    name="glm5",
    help="GLM-5 in readable Python: train it, look into it, talk to it. One code path from a laptop to a cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Name = Annotated[str, typer.Argument(metavar="PRESET|CHECKPOINT", help="A preset's name, or a checkpoint's folder.")]
Checkpoint = Annotated[Path, typer.Argument(help="Folder with config.json and weights.")]
Precision = Annotated[str, typer.Option(help="Compute in float32 or bfloat16.")]

_words = Console(stderr=True)

# Ends that the parser of the command line brings about and tells itself.
_PARSER_ENDINGS = {2: "wrong arguments; stderr says which", 130: "interrupted"}


def main() -> None:
    """Run the command line and exit."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code in _PARSER_ENDINGS and "--json" in sys.argv:
            print(json.dumps({"error": _PARSER_ENDINGS[end.code]}))
        raise
    except GLM5Error as error:
        _fail(error)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        sys.exit(1)


def _fail(error: GLM5Error) -> NoReturn:
    label = "error" if error.exit_code == 1 else "wrong use"
    for number, line in enumerate(str(error).splitlines()):
        _words.print(
            f"{label}: {line}" if number == 0 else line, style="red", markup=False, highlight=False, soft_wrap=True
        )
    if "--json" in sys.argv:
        print(json.dumps({"error": str(error)}))
    sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(glm5.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# -- runs ------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/nano.toml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this stage (repeatable).")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave this stage out (repeatable).")] = None,
    restart: Annotated[bool, typer.Option(help="Begin the chosen stages anew; old results are set aside.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe's stages in order; what is finished is kept, what was interrupted goes on."""
    from glm5.pipeline import run_recipe, validate
    from glm5.pipeline.stages import MODEL_STAGES
    from glm5.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        resolved = validate(loaded, str(recipe))
        print(json.dumps(resolved.model_dump(mode="json")) if as_json else resolved.to_toml().rstrip("\n"))
        return
    with _cluster() as leads:
        if not leads:
            return
        records = run_recipe(loaded, str(recipe), only=only or None, skip=skip or (), restart=restart, console=_words)
    report, model = loaded.output / "report.html", loaded.output / "pretrain" / "model"
    if as_json:
        stages = {r.name: {"status": r.status, "seconds": round(r.seconds, 1), "summary": r.summary} for r in records}
        print(json.dumps({"output": str(loaded.output), "stages": stages}))
        return
    _words.print()
    if report.exists():
        _words.print(f"look at it   {report}", highlight=False)
    if model.exists():
        _words.print(f"talk to it   glm5 chat {model}", highlight=False)
    tuned = [loaded.output / stage / "model" for stage in loaded.stages if stage in MODEL_STAGES[1:]]
    if made := [each for each in tuned if each.exists()]:  # it has learned to take turns
        _words.print(f"serve it     glm5 serve {made[-1]}", highlight=False)


@contextmanager
def _cluster() -> Iterator[bool]:
    """Under torchrun the first process leads; the others do what it announces, and there is nothing left for them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from glm5.train.parallel import dismiss, follow, is_follower

    if is_follower():
        follow()
        yield False
        return
    try:
        yield True
    finally:
        dismiss()


@app.command()
def sft(
    checkpoint: Checkpoint,
    data: Annotated[list[str], typer.Argument(metavar="DATA.jsonl... [KEY=VALUE]...", help="Files, then settings.")],
    output: Annotated[Path, typer.Option(help="Folder for the model and everything on the way to it.")],
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch; 0 leaves its own choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on conversations; the same command goes on after an interruption."""
    from glm5.recipe import load_sft_section

    overrides = [argument for argument in data if "=" in argument and not Path(argument).exists()]
    files = [argument for argument in data if argument not in overrides]
    if not files:
        raise UsageError("give at least one file of conversations, such as chat.jsonl")
    with _loading(checkpoint):
        from glm5.model.checkpoint import read_config
        from glm5.train.sft import FineTuning, fine_tune, same_work

        config = read_config(checkpoint)
    values = {
        "data": [{"path": file} for file in files],
        "context_length": min(4096, config.max_position_embeddings),
        "mtp_steps": 3 if config.num_nextn_predict_layers else 0,
    }
    work = FineTuning(checkpoint, load_sft_section(values, overrides), output, seed, threads)
    with _cluster() as leads:
        if not leads:
            return
        same_work(work)
        reached = fine_tune(work, _words)
    if as_json:
        print(json.dumps({"model": str(output / "model"), "summary": reached}))
        return
    for name, value in reached.items():
        _words.print(f"  {name}: {value}", markup=False, highlight=False)
    _words.print(f"talk to it   glm5 serve {output / 'model'}", highlight=False)


@app.command()
def rl(
    file: Annotated[Path, typer.Argument(help="A TOML file with name, output and a section [rl].")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the settings, run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Reinforce a checkpoint on tasks of your own, asynchronously; the same command goes on after an interruption."""
    from glm5.recipe import load_rl_request
    from glm5.recipe.toml import to_toml

    request = load_rl_request(file, overrides or [])
    if dry_run:
        print(to_toml(request.model_dump(mode="json", exclude_none=True)))
        return
    with _loading(Path(request.rl.checkpoint or "")):
        from glm5.rl.stage import run_request
    reached = run_request(request, _words)
    if as_json:
        print(json.dumps({"model": str(request.output / "model"), "summary": reached}))
        return
    for name, value in reached.items():
        _words.print(f"  {name}: {value}", markup=False, highlight=False)
    _words.print(f"talk to it   glm5 serve {request.output / 'model'}", highlight=False)


@app.command()
def settings(
    search: Annotated[str, typer.Argument(help="Show only settings whose name or meaning contains this.")] = "",
) -> None:
    """Explain every setting a recipe can have."""
    from glm5.recipe import settings as all_settings

    shown = [s for s in all_settings() if search.lower() in f"{s.key} {s.description}".lower()]
    if not shown:
        raise UsageError(f"no setting mentions '{search}'")
    table = Table("setting", "type", "default", "meaning", box=None, pad_edge=False)
    for setting in shown:
        default = "required" if setting.required else setting.default or ""
        table.add_row(f"[bold]{setting.key}[/]", setting.type, default, setting.description.replace("[", r"\["))
    Console().print(table)


# -- networks --------------------------------------------------------------------------------------------------------


@app.command()
def info(name: Name, as_json: Json = False) -> None:
    """Parameters of a network: total, stored, active, by part, and its memory in each precision."""
    from glm5.model.checkpoint import read_config
    from glm5.model.counts import count_parameters
    from glm5.model.presets import PRESETS

    folder = Path(name)
    if name in PRESETS:
        config = PRESETS[name]
    elif folder.exists():
        config = read_config(folder)
    else:
        raise UsageError(f"'{name}' is neither a preset ({', '.join(PRESETS)}) nor a folder")
    counts = count_parameters(config)
    if as_json:
        values = {"name": name, "model_type": config.model_type, "parameters": counts.headline()}
        print(json.dumps({**values, "parts": counts.parts, "memory": counts.memory()}))
        return
    table = Table(title=f"{name} · {config.model_type}", box=None, title_justify="left", show_header=False)
    for part, size in counts.parts.items():
        table.add_row(part, _count(size), f"{size / counts.stored:6.1%}")
    table.add_section()
    table.add_row("total", _count(counts.total), "decoder, embedding, head", style="bold")
    table.add_row("stored", _count(counts.stored), "with the prediction layer", style="bold")
    table.add_row("active", _count(counts.active), "for one token, without embedding and head", style="bold")
    table.add_section()
    for precision, needed in counts.memory().items():
        table.add_row(f"in {precision}", _bytes(needed), "")
    Console().print(table)


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    ids: Annotated[str | None, typer.Option(help="Token ids to continue, such as 1,2,3.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    dtype: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Continue a text, or token ids."""
    if (prompt is None) == (ids is None):
        raise UsageError("give either --prompt or --ids")
    model = _load(checkpoint, dtype)
    if ids is not None:
        tokens, tokenizer = _parse_ids(ids), None
    else:
        tokenizer = _tokenizer(checkpoint)
        tokens = [tokenizer.eos_id, *tokenizer.encode(prompt)]

    from glm5.engine.generate import generate as continue_tokens

    stream = None if as_json or tokenizer is None else _Printer(tokenizer)
    [completion] = continue_tokens(
        model, [tokens], max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
        stop_ids=model.config.eos_token_id, on_token=stream,
    )  # fmt: skip
    if stream is not None:
        stream.end()
    elif as_json:
        values: dict[str, Any] = {"ids": completion.ids, "logprobs": completion.logprobs}
        if tokenizer is not None:
            values["text"] = tokenizer.decode(completion.ids)
        print(json.dumps({**values, "finish_reason": completion.finish_reason}))
    else:
        print(",".join(map(str, completion.ids)))


@app.command()
def chat(
    checkpoint: Checkpoint,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of one answer at most.")] = 160,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 0.95,
    dtype: Precision = "float32",
) -> None:
    """Talk to a model. A base model, which knows no turns yet, continues what you write."""
    from glm5.engine.generate import generate as continue_tokens

    model, tokenizer = _load(checkpoint, dtype), _tokenizer(checkpoint)
    room = model.config.max_position_embeddings
    _words.print(f"{checkpoint} continues what you write. Empty line or Ctrl-D ends.", style="dim", highlight=False)
    for turn, text in enumerate(_typed_lines()):
        tokens = [tokenizer.eos_id, *tokenizer.encode(text)]
        printer = _Printer(tokenizer)
        print(text, end="")
        try:
            continue_tokens(
                model, [tokens], min(max_new_tokens, max(1, room - len(tokens))), temperature=temperature, top_p=top_p,
                seed=turn, stop_ids=model.config.eos_token_id, on_token=printer,
            )  # fmt: skip
        except UsageError as error:
            _words.print(f"\n{error}", style="red", markup=False)
        except KeyboardInterrupt:  # this answer only
            pass
        printer.end()


@app.command()
def serve(
    checkpoint: Checkpoint,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: Annotated[list[str] | None, typer.Option(help="Clients need one of these (repeatable).")] = None,
    model_name: Annotated[list[str] | None, typer.Option(help="Name the model answers to (repeatable).")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens of prompt and answer at most.")] = None,
    drafts: Annotated[
        str, typer.Option(help="Tokens the prediction layer proposes a step: 0 to 16, or adaptive.")
    ] = "0",
    cache_mb: Annotated[int, typer.Option(help="Memory for the paged cache, in MiB.")] = 512,
    batch_invariant: Annotated[bool, typer.Option(help="Same bits whatever else is in the batch; slower.")] = False,
    threads: Annotated[int | None, typer.Option(help="Of torch; its own choice if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute in float32 or bfloat16; as stored if not given.")] = None,
) -> None:
    """Serve a checkpoint over HTTP: OpenAI and Anthropic clients, token ids in and out, a chat page at /."""
    from glm5.engine.records import EngineSettings
    from glm5.server.command import serve as serve_checkpoint

    if dtype not in (None, "float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: float32 or bfloat16")
    if drafts != "adaptive" and not drafts.isdecimal():
        raise UsageError(f"--drafts {drafts}: a number from 0 to 16, or adaptive")
    settings = EngineSettings(
        cache_bytes=cache_mb * 2**20,
        draft_tokens="adaptive" if drafts == "adaptive" else int(drafts),
        batch_invariant=batch_invariant,
        threads=threads,
    )
    serve_checkpoint(
        checkpoint, host=host, port=port, api_keys=api_key or (), model_names=model_name or (),
        context_length=context_length, dtype=cast(Any, dtype), engine_settings=settings,
    )  # fmt: skip


# -- agents ----------------------------------------------------------------------------------------------------------


@app.command()
def code(
    task: Annotated[str, typer.Argument(help="What is to be done; asked for in a terminal if not given.")] = "",
    root: Annotated[Path, typer.Option(help="Folder of the project.")] = Path("."),
    url: Annotated[
        str, typer.Option(envvar="GLM5_BASE_URL", help="An OpenAI-compatible endpoint, up to /v1.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(envvar="GLM5_MODEL", help="Name of the model there.")] = "glm-5",
    api_key: Annotated[str | None, typer.Option(envvar="GLM5_API_KEY", help="Key of the endpoint.")] = None,
    mode: Annotated[str, typer.Option(help="read-only, ask, auto (in a sandbox) or full (on this machine).")] = "auto",
    test: Annotated[str, typer.Option(help="The command that shows success; the model's choice if not given.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="Glob of files the task is about (repeatable).")] = None,
    policy: Annotated[Path | None, typer.Option(help="TOML file with the project's own rules.")] = None,
    show: Annotated[list[Path] | None, typer.Option(help="Folder that commands may read (repeatable).")] = None,
    session: Annotated[Path | None, typer.Option(help="Folder of the session; an existing one goes on.")] = None,
    context: Annotated[str, typer.Option(help="none, keep-recent, discard-all, hybrid or summary.")] = "hybrid",
    threshold: Annotated[int | None, typer.Option(help="Tokens at which the history is dropped.")] = None,
    thinking: Annotated[str, typer.Option(help="on, off, auto or model.")] = "model",
    mcp: Annotated[list[str] | None, typer.Option(help="An MCP server as name=command (repeatable).")] = None,
    steps: Annotated[int | None, typer.Option(help="Turns of the model at most.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens at most, cached ones not counted.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds at most.")] = None,
    script: Annotated[Path | None, typer.Option(help="Steps of a scripted model, to try things without one.")] = None,
    events: Annotated[bool, typer.Option(help="Print every event as a JSON line; ask nobody.")] = False,
    as_json: Json = False,
) -> None:
    """Let a model work on a project until it is shown to be done. Exit codes: docs/code.md."""
    from glm5.agents.coding.command import code as work
    from glm5.agents.coding.session import SessionSettings, new_folder, state_folder
    from glm5.agents.limits import Limits

    limits = {"steps": steps, "tokens": tokens, "seconds": seconds}
    settings = SessionSettings(
        root, task, session or new_folder(task), cast(Any, mode), model, test, tuple(scope or ()), policy,
        tuple(show or ()), Limits.default(**{name: value for name, value in limits.items() if value is not None}),
        context=cast(Any, context), threshold=threshold, thinking=cast(Any, thinking), mcp=tuple(mcp or ()),
        memory=state_folder() / "memory",
    )  # fmt: skip
    raise typer.Exit(work(settings, url, api_key, script, events, as_json))


@app.command()
def batch(
    tasks: Annotated[Path, typer.Argument(help="JSON lines (ours or SWE-bench), or a folder of Harbor tasks.")],
    output: Annotated[Path, typer.Option(help="Folder for trees, sessions and results.")],
    repositories: Annotated[Path | None, typer.Option(help="Folder with clones, for SWE-bench rows.")] = None,
    url: Annotated[
        str, typer.Option(envvar="GLM5_BASE_URL", help="An OpenAI-compatible endpoint, up to /v1.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(envvar="GLM5_MODEL", help="Name of the model there.")] = "glm-5",
    api_key: Annotated[str | None, typer.Option(envvar="GLM5_API_KEY", help="Key of the endpoint.")] = None,
    workers: Annotated[int, typer.Option(help="Tasks at once.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Turns of the model for one task at most.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens for all tasks together at most; 0 for no limit.")] = 0,
    seconds: Annotated[float, typer.Option(help="Seconds for all tasks together at most; 0 for no limit.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Let a model work on a set of tasks; the same command goes on after an interruption."""
    from dataclasses import asdict

    from glm5.agents.coding.command import batch as work
    from glm5.agents.coding.session import SessionSettings
    from glm5.agents.limits import Limits

    limits = Limits.default() if steps is None else Limits.default(steps=steps)
    settings = SessionSettings(Path("."), "each task's own", output / "session", "auto", model, limits=limits)
    outcomes = work(
        tasks, repositories, settings, url, api_key, output, workers, Limits(tokens=tokens, seconds=seconds)
    )
    if as_json:
        print(json.dumps({"results": [asdict(outcome) for outcome in outcomes], "output": str(output)}))
    else:
        _words.print(f"predictions   {output / 'predictions.jsonl'}", highlight=False)


@app.command()
def view(
    log: Annotated[Path, typer.Argument(help="Folder of a session, its events.jsonl, or a trajectory (.json).")],
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    atif: Annotated[Path | None, typer.Option(help="Write Harbor's trajectory format to this file.")] = None,
    mini: Annotated[Path | None, typer.Option(help="Write mini-swe-agent's trajectory format to this file.")] = None,
    browse: Annotated[bool, typer.Option(help="Open the page.")] = False,
) -> None:
    """Look at what an agent did, in the terminal or as a page; also in and from the formats of others."""
    from glm5.agents.coding.command import Writing
    from glm5.agents.coding.command import view as look

    for path in look(log, Writing(html, atif, mini), browse):
        _words.print(f"look at it   {path}", highlight=False)


@app.command()
def index(
    source: Annotated[Path, typer.Argument(help="A folder, a JSON Lines file or a Parquet table.")],
    output: Annotated[Path, typer.Option(help="Folder of the index; an unfinished one goes on.")] = Path("index"),
    as_json: Json = False,
) -> None:
    """Index documents for search; the same command goes on after an interruption."""
    from glm5.search.command import index_documents

    record = index_documents(source, output, _words)
    if as_json:
        print(json.dumps({"index": str(output), "documents": record.documents, "skipped": record.skipped}))


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            text = input("\n> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if not text.strip():
            return
        yield text


class _Printer:
    """Writes tokens as text as soon as they are whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._pending = tokenizer, b""

    def __call__(self, row: int, token: int) -> None:
        if token in self._tokenizer.stop_ids:
            return
        known = self._tokenizer.is_token(token)
        self._pending += self._tokenizer.token_bytes(token) if known else "\ufffd".encode()
        text = self._pending.decode(errors="ignore")
        if text.encode() == self._pending or len(self._pending) > 4:
            print(self._pending.decode(errors="replace"), end="", flush=True)
            self._pending = b""

    def end(self) -> None:
        print(self._pending.decode(errors="replace"), flush=True)


def _load(checkpoint: Path, dtype: str) -> Any:
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: float32 or bfloat16")
    with _loading(checkpoint):
        import torch

        from glm5.model.checkpoint import load_checkpoint

        return load_checkpoint(checkpoint, getattr(torch, dtype))


@contextmanager
def _loading(checkpoint: Path) -> Iterator[None]:
    with _words.status(f"loading {checkpoint}"):
        yield


def _tokenizer(checkpoint: Path) -> Any:
    from glm5.text.tokenizer import Tokenizer

    if not (checkpoint / "tokenizer.json").exists():
        raise UsageError(f"{checkpoint} has no tokenizer.json: give token ids with --ids")
    return Tokenizer.load(checkpoint)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--ids {text}: expected numbers separated by commas, such as 1,2,3") from None


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.1f} KB"


if __name__ == "__main__":
    main()
