"""The commands, their options and their help. What they do is imported when they do it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Are two implementations of a transformer the same model? If not: where, why, mended.",
    epilog="Exit status: 0 identical or rounding, 1 different, 2 could not compare.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Sites(StrEnum):
    """Which sites are compared."""

    all = "all"
    sublayers = "sublayers"
    residual = "residual"
    logits = "logits"
    logprobs = "logprobs"


Text = Annotated[str | None, typer.Option(help="Run this text; needs the tokenizer of the reference.")]
Tokens = Annotated[
    Path | None,
    typer.Option(help="Run these ids: a JSON list of lists, or safetensors with `tokens`, `mask`."),
]
ModelPath = Annotated[
    Path | None,
    typer.Option("--model", help="A checkpoint that says what model this is (config and weights)."),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")]
Calls = Annotated[
    str | None,
    typer.Option(metavar="N,N,…", help="Tokens of each call, with a key/value cache: 60,1,1 is prefill and two steps."),
]
Markdown = Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """What stands before a command."""
    if version:
        import twinlens

        typer.echo(f"twinlens {twinlens.__version__}")
        raise typer.Exit


@app.command(short_help="Same model or not, where they part, why.")
def compare(
    reference: Annotated[str, typer.Argument(help="hf:PATH, tl:PATH, native:PATH or PATH.")],
    candidate: Annotated[str, typer.Argument(help="The same, or torch:FILE.py:make.")],
    text: Text = None,
    tokens: Tokens = None,
    probe: Annotated[
        str | None, typer.Option(help="`auto`: past every window and rotary context, one of two rows padded.")
    ] = None,
    sites: Annotated[Sites, typer.Option(help="Which sites to compare.")] = Sites.all,
    calls: Calls = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Run once more what tells apart what one run does not, or leaves unexplained.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend the candidate in memory, and compare again.")] = False,
    order: Annotated[bool, typer.Option("--order", help="As --fix, and to the last bit: orders as well.")] = False,
    json: Json = None,
    markdown: Markdown = None,
    html: Annotated[Path | None, typer.Option(help="In a later version.")] = None,
    model: ModelPath = None,
    layers_at_a_time: Annotated[
        bool,
        typer.Option("--layers-at-a-time", help="For weights larger than memory: on disk but for the layer that runs."),
    ] = False,
) -> int:
    """Compare two implementations: the same model or not, where they part, and why.

    Without --text or --tokens both run seeded random tokens, longer than the attention window; with --probe auto
    two rows of them, past every threshold of the model, one with padding on the left.
    A source may say in which environment it runs; twinlens makes that environment once.

    \b
    Examples:
      twinlens compare hf:models/gemma-2-2b "hf:models/gemma-2-2b?attn=sdpa"
      twinlens compare models/llama torch:my_port.py:make --text "The cat sat" --json report.json
      twinlens compare hf:models/llama tl:models/llama --probe auto
      twinlens compare hf:models/llama native:models/llama --calls 60,1,1
      twinlens compare hf:models/llama tl:models/llama --sites logits --ask
      twinlens compare hf:models/llama-70b native:models/llama-70b --layers-at-a-time
      twinlens compare hf:G@transformers==4.43.2 \\
          tl:G@transformer-lens==2.3.0,transformers==4.43.2 --fix --order
    """  # noqa: D301  (\b keeps the lines, and the help needs one backslash at their end)
    from twinlens.cli import comparing

    comparing.refuse_later(html)
    return comparing.compare(
        (reference, candidate),
        text=text,
        tokens=tokens,
        probe=probe,
        sites=sites,
        calls=calls,
        ask=ask,
        fix=fix or order,
        order=order,
        files=comparing.Files(json, markdown),
        model=model,
        layers_at_a_time=layers_at_a_time,
    )


@app.command(short_help="Record every tensor of a run.")
def record(
    source: Annotated[str, typer.Argument(help="What to record, as for compare.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    text: Text = None,
    tokens: Tokens = None,
    calls: Calls = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier recording.")] = False,
    model: ModelPath = None,
) -> int:
    """Record one run: every tensor at a known site, as safetensors and a manifest.

    \b
    Examples:
      twinlens record hf:models/gemma-2-2b -o runs/eager --text "The cat sat on the mat"
      twinlens record tl:G@transformer-lens==2.3.0,transformers==4.43.2 -o runs/tl
      twinlens record torch:my_port.py:make --model models/llama -o runs/port --tokens ids.json
      twinlens record hf:models/llama -o runs/decoding --calls 60,1,1
    """  # noqa: D301
    from twinlens.cli import recording

    return recording.record(source, out, text, tokens, model, calls, overwrite=overwrite)


@app.command(short_help="Say what a recording holds.")
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a recording.")],
    site: Annotated[str | None, typer.Argument(help="One site, with its numbers.")] = None,
) -> int:
    """Say what a recording holds: implementation, versions, calls, sites.

    \b
    Examples:
      twinlens show runs/eager
      twinlens show runs/eager blocks.3.attn.hook_pattern
    """  # noqa: D301
    from twinlens.cli import showing

    return showing.show(folder, site)


@app.command(short_help="Compare two recordings.")
def explain(
    reference: Annotated[Path, typer.Argument(metavar="REC_A", help="The reference's recording.")],
    candidate: Annotated[Path, typer.Argument(metavar="REC_B", help="The candidate's recording.")],
    model: ModelPath = None,
    json: Json = None,
    markdown: Markdown = None,
) -> int:
    """Compare two recordings: where they part, and why.

    What the model is declared to be is read from --model, else from the checkpoint that the
    manifest of REC_A names.

    \b
    Examples:
      twinlens explain runs/eager runs/tl
      twinlens explain runs/theirs runs/mine --model models/llama --markdown report.md
    """  # noqa: D301
    from twinlens.cli import comparing

    return comparing.explain((reference, candidate), model, files=comparing.Files(json, markdown))


@app.command(short_help="Which keys of a config an implementation does not read.")
def lint(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model folder: config.json and safetensors.")],
    source: Annotated[
        str | None, typer.Option("--for", metavar="SOURCE", help="The implementation, as for compare; default hf:PATH.")
    ] = None,
    json: Json = None,
) -> int:
    """Which keys of a checkpoint's config does an implementation not read, and does it matter?

    Each key that could count is changed by itself, nothing being written, and the output watched. Where it stays, and
    should not by what the model is declared to be, the value that is in effect instead is found by comparing.
    Exit status: 0 every key that counts is in effect, 1 one is not or something else differs, 2 could not lint.

    \b
    Examples:
      twinlens lint models/llama
      twinlens lint models/llama --for hf:models/llama@transformers==4.43.2
      twinlens lint models/llama --for "torch:my_port.py:make?folder=models/llama" --json keys.json
    """  # noqa: D301
    from twinlens.cli import linting

    return linting.lint(path, source, json)


museum = typer.Typer(
    help="Divergences that happened between implementations of one model, to look at and to try.", rich_markup_mode=None
)
app.add_typer(museum, name="museum")


@museum.command("list", short_help="All exhibits.")
def museum_list(
    wing: Annotated[str | None, typer.Option(help="Only those of one wing: rotary, norms, …")] = None,
) -> int:
    """All exhibits by name, wing by wing, with what is at fault and who reported it.

    \b
    Examples:
      twinlens museum list
      twinlens museum list --wing rotary
    """  # noqa: D301
    from twinlens.cli import showroom

    return showroom.show_all(wing)


Name = Annotated[str, typer.Argument(metavar="NAME", help="An exhibit, as `twinlens museum list` names it.")]


@museum.command("show", short_help="What one exhibit is.")
def museum_show(name: Name) -> int:
    """What was planted in which model, what must be said of it, how it is run, who reported it.

    \b
    Example:
      twinlens museum show gemma2-scale-14-97-vs-16
    """  # noqa: D301
    from twinlens.cli import showroom

    return showroom.show(name)


@museum.command("run", short_help="Compare one exhibit.")
def museum_run(
    name: Name,
    sites: Annotated[Sites, typer.Option(help="How much is seen of the candidate.")] = Sites.all,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
) -> int:
    """Plant an exhibit in a live model of transformers, compare, and say whether what is said of it is right.

    Exit status: 0 it is, 1 it is not, 2 could not run.

    \b
    Examples:
      twinlens museum run gemma2-scale-14-97-vs-16
      twinlens museum run causal-mask-missing --sites logprobs
    """  # noqa: D301
    from twinlens.cli import showroom

    return showroom.run(name, sites, dtype)


@app.command(short_help="See it work on real weights.")
def demo() -> int:
    """Real weights, real implementations: the same model or not, why, mended.

    \b
    Example:
      twinlens demo
    """  # noqa: D301
    from twinlens import demo as shown

    return int(shown.main() or 0)
