"""``mergekit schema``: the recipe language for editors."""

from __future__ import annotations

import json

import click


@click.command
@click.help_option("-h", "--help")
def schema() -> None:
    """Print the JSON Schema of recipes, which lets editors complete and check them."""
    from mergekit.plan import VOCABULARY
    from mergekit.recipe import recipe_schema

    click.echo(json.dumps(recipe_schema(VOCABULARY), indent=2))
