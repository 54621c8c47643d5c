"""Train a reference model: `prepare` (tokenizer, tokens), `run` (steps, resumable), `card` (measure, write the folder).

python experiments/reference-model/train.py run --corpora ../shared/corpora/train-00.jsonl.xz -o build/reference
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqkv.errors import ConfigError, ModelError, PqkvError

if TYPE_CHECKING:
    from refmodel.batches import Batches
    from refmodel.recipe import Recipe
    from transformers import LlamaForCausalLM

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Corpora = Annotated[list[Path], typer.Option("--corpora", help="jsonl (also .xz, .gz), text or folder; repeatable")]
Out = Annotated[Path, typer.Option("-o", "--out", help="working folder; the same again goes on where it stopped")]
Name = Annotated[str, typer.Option("--recipe", help="gpu, cpu, cpu-long or tiny, or a JSON file of a recipe")]
InitFrom = Annotated[Path | None, typer.Option(help="start from this model's weights and tokenizer")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Minutes = Annotated[float | None, typer.Option(help="stop after this long; run again to go on")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the same number resumes bit for bit")]


def _recipe(name: str) -> Recipe:
    from pydantic import ValidationError
    from refmodel.recipe import RECIPES, Recipe

    if name in RECIPES:
        return RECIPES[name]
    if not Path(name).is_file():
        raise ConfigError(f"--recipe {name} is neither a file nor one of {', '.join(RECIPES)}")
    try:
        return Recipe.model_validate_json(Path(name).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} is no recipe: {f'{where}: ' if where else ''}{first['msg']}") from error


def _prepared(recipe: Recipe, corpora: list[Path], out: Path, init_from: Path | None) -> Batches:
    from refmodel import tokens
    from refmodel.batches import Batches
    from refmodel.facts import FactWriter, frequent_words

    if init_from is not None and not init_from.is_dir():
        raise ModelError(f"there is no model folder {init_from} to start from")
    if not (out / "tokens.json").exists():
        tokens.check_sources(corpora)
    out.mkdir(parents=True, exist_ok=True)
    shape = recipe.shape
    tokens.claim(out, {
        "vocabulary": shape.vocabulary, "init_from": init_from and init_from.name,
        "corpora": [path.name for path in corpora], "corpus_bytes": recipe.corpus_bytes,
    })  # fmt: skip
    kept = out / "tokenizer"
    if not (kept / "tokenizer.json").exists():
        if init_from is not None:
            made = tokens.load_tokenizer(init_from)
        else:
            typer.echo("training the tokenizer")
            texts = tokens.corpus_texts(corpora, recipe.corpus_bytes)
            made = tokens.train_tokenizer(texts, shape.vocabulary, shape.positions, recipe.tokenizer_bytes)
        made.save_pretrained(kept)
    tokenizer = tokens.load_tokenizer(kept)
    words_file = out / "words.json"
    if not words_file.exists():
        words = frequent_words(tokens.corpus_texts(corpora, 20_000_000), 3000)
        tokens.write_whole(words_file, json.dumps(words))
    file = tokens.write_tokens(
        out, tokens.corpus_texts(corpora, recipe.corpus_bytes), tokenizer,
        lambda documents, count: typer.echo(f"tokenized {documents:,} documents, {count:,} tokens"),
    )  # fmt: skip
    writer = FactWriter(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], json.loads(words_file.read_text())
    )
    writer.check()
    return Batches(recipe, file, writer, out)


@app.command()
def prepare(
    corpora: Corpora, out: Out = Path("build/reference"), recipe: Name = "cpu", init_from: InitFrom = None
) -> None:
    """Tokenizer, tokens and packings; `run` does it too."""
    batches = _prepared(_recipe(recipe), corpora, out, init_from)
    typer.echo(f"{len(batches):,} steps prepared")


@app.command()
def run(
    corpora: Corpora,
    out: Out = Path("build/reference"),
    recipe: Name = "cpu",
    init_from: InitFrom = None,
    device: Device = "cpu",
    minutes: Minutes = None,
    threads: Threads = None,
) -> None:
    """Train until the recipe or the minutes end, then save the weights as of now into OUT/model."""
    chosen = _recipe(recipe)
    import torch
    from refmodel.training import train

    if threads:
        torch.set_num_threads(threads)
    batches = _prepared(chosen, corpora, out, init_from)
    model, done = train(
        chosen, batches, out, device=device, minutes=minutes, init_from=init_from,
        report=lambda line: typer.echo(" ".join(f"{k} {v}" for k, v in line.items())),
    )  # fmt: skip
    _export(model, out)
    typer.echo(f"{done:,} of {chosen.steps:,} steps done; weights in {out / 'model'}")


@app.command()
def card(
    model: Annotated[Path, typer.Option(help="folder of the model")] = Path("build/reference/model"),
    corpora: Annotated[Path, typer.Option(help="folder with wikitext-2-raw/ and books/")] = Path("../shared/corpora"),
    facts: Annotated[Path | None, typer.Option(help="Markdown that the card begins with: how it was trained")] = None,
    windows: Annotated[int, typer.Option(help="windows of 512 tokens of each text; longer ones as many tokens")] = 64,
    prompts: Annotated[int, typer.Option(help="recall prompts of each length")] = 16,
    device: Device = "cpu",
    print_only: Annotated[bool, typer.Option("--print-only", help="write nothing")] = False,
) -> None:
    """Measure a model and write card.json and README.md into its folder."""
    from refmodel.card import measure, tables, write_card

    from pqkv.text.reading import read_text

    # load_model takes a name that is no folder for one of the hub's
    if not model.is_dir():
        raise ModelError(f"there is no model folder {model}: `run` writes one into its working folder")
    opening = read_text(facts) if facts else f"# Model card: {model.name}\n"
    figures = measure(model, corpora, windows=windows, prompts=prompts, device=device, report=typer.echo)
    if not print_only:
        write_card(model, figures, opening)
    typer.echo(tables(figures))


def _export(model: LlamaForCausalLM, out: Path) -> None:
    """The transformers folder: bfloat16 weights in files under 15 MiB, and the tokenizer."""
    import torch
    from refmodel.tokens import load_tokenizer

    folder = out / "model"
    model.to("cpu", torch.bfloat16).save_pretrained(folder, max_shard_size="14MB")
    load_tokenizer(out / "tokenizer").save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    try:
        app(arguments)
    except PqkvError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
