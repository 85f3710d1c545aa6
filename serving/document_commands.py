"""`riskfm document`: the model document of an adaptation, in English and Chinese."""

from __future__ import annotations

from pathlib import Path

import click

DIR = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("model_dir", type=DIR)
@click.option("-o", "--output", type=DIR, required=True, help="Directory for the documents.")
@click.option("--backtest", type=DIR, help="What `riskfm backtest -o` wrote for this package.")
@click.option("--language", default="en,zh", show_default=True, help="en, zh, or both.")
def document(model_dir: Path, output: Path, backtest: Path | None, language: str) -> None:
    """Write the document of a model that `riskfm adapt -o MODEL_DIR` made, and a short card."""
    from finetune.model_document import write_documents

    languages = tuple(part.strip() for part in language.split(",") if part.strip())
    for path in write_documents(model_dir, output, backtest_dir=backtest, languages=languages):
        click.echo(f"wrote {path}")
