"""The command line, from the commands themselves."""

import click
import typer
from markdown import as_markdown, code, escaped, table

from fedsim.cli.commands import app


def write() -> str:
    """Write a section per command."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return "\n".join(_section(f"fedsim {name}", command) for name, command in group.commands.items())


def _section(name: str, command: click.Command) -> str:
    if isinstance(command, click.Group):
        return "\n".join(_section(f"{name} {each}", inner) for each, inner in command.commands.items())
    context = click.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    rows = [(code(_spelling(each, context)), _meaning(each)) for each in command.params]
    return f"## `{name}`\n\n```\n{usage}\n```\n\n{escaped(command.help or '')}\n\n" + table(("", "meaning"), rows)


def _spelling(parameter: click.Parameter, context: click.Context) -> str:
    metavar = parameter.make_metavar(context)
    if isinstance(parameter, click.Argument):
        return metavar
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    return ", ".join(parameter.opts) + ("" if is_flag else f" {metavar}")


def _meaning(parameter: click.Parameter) -> str:
    text = as_markdown(getattr(parameter, "help", None) or "")
    default = parameter.default
    if default in (None, False) or isinstance(parameter, click.Argument) or callable(default):
        return text
    return f"{text} Default: {code(str(default))}."
