"""What the documents say exists: commands, options, make targets, files, schemas, outcomes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
import yaml

from foundation.outcomes import parse_outcome, parse_query
from foundation.schema import Kind, schema_from_dict
from serving.cli import cli
from tests.contracts.tree import ROOT, files

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, such as `events import`."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def groups(group: click.Group) -> Iterator[click.Group]:
    """The group and every group below it."""
    yield group
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from groups(command)


TREE = dict(walk(cli))


def fenced(text: str, *languages: str) -> Iterator[str]:
    """Bodies of the fenced blocks of some languages."""
    for language, body in FENCE.findall(text):
        if language in languages:
            yield body


def shell_lines(text: str) -> Iterator[list[str]]:
    """Words of the commands in a document's shell blocks; continued lines are joined."""
    for body in fenced(text, "bash", "sh", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def find(words: list[str]) -> tuple[str, click.Command]:
    """The command that `riskfm WORDS` runs."""
    command: click.Command = cli
    name: list[str] = []
    for word in words:
        if not isinstance(command, click.Group):
            break
        assert word in command.commands, f"riskfm {' '.join([*name, word])}: no such command"
        command = command.commands[word]
        name.append(word)
    assert not isinstance(command, click.Group), f"riskfm {' '.join(name)} is a group"
    return " ".join(name), command


def options(command: click.Command) -> set[str]:
    """Every spelling of a command's options."""
    return {
        o
        for p in command.params
        if isinstance(p, click.Option)
        for o in (*p.opts, *p.secondary_opts)
    }


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/commands.md",
        "docs/data.md",
        "docs/delivery.md",
        "docs/daily.md",
        "docs/decisions.md",
    ],
)
def test_shell_blocks_run_what_exists(document: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for words in shell_lines((ROOT / document).read_text(encoding="utf-8")):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
        if words[0] == "riskfm":
            name, command = find(words[1:])
            given = {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert given <= options(command) | {"--help"}, f"riskfm {name}: {sorted(given)}"
            for word in words:
                if word.startswith("configs/"):
                    assert (ROOT / word).exists(), word


def test_readme_names_the_two_commands() -> None:
    run = [words for words in shell_lines(README) if words[0] == "make"]
    assert ["make", "demo"] in run
    assert ["make", "test"] in run


@pytest.mark.parametrize("name", sorted(TREE))
def test_every_command_has_help_and_a_section(name: str) -> None:
    command = TREE[name]
    assert command.help
    assert command.help.strip()
    sections = re.split(r"^## riskfm ", COMMANDS, flags=re.M)[1:]
    found = [s for s in sections if s.splitlines()[0].strip() == name]
    assert len(found) == 1, f"docs/commands.md needs one section '## riskfm {name}'"
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", found[0]))
    missing = {
        p.name: p.opts
        for p in command.params
        if isinstance(p, click.Option) and not set(p.opts) & written
    }
    assert not missing, f"docs/commands.md, riskfm {name}: say what {missing} do"
    unknown = {w for w in written if w.startswith("--")} - options(command)
    assert not unknown, f"docs/commands.md, riskfm {name}: {unknown} do not exist"


def test_no_section_without_a_command() -> None:
    assert set(re.findall(r"^## riskfm (.+?)\s*$", COMMANDS, re.M)) == set(TREE)


def test_every_group_has_help() -> None:
    for group in groups(cli):
        assert group.help


def test_links_lead_somewhere() -> None:
    for path in files():
        if path.suffix != ".md":
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (ROOT / path.parent / target).exists(), f"{path}: {target}"


def test_schemas_in_the_documents_load() -> None:
    blocks = list(fenced(DATA, "yaml"))
    assert blocks
    for body in blocks:
        schema_from_dict(yaml.safe_load(body), "docs/data.md")


def test_outcomes_in_the_documents_parse() -> None:
    table = re.findall(r"^\| `([^`]+ within [^`]+)` \|", DATA, re.M)
    assert len(table) >= 8
    for text in table:
        parse_query(text) if text.startswith("P(") else parse_outcome("example", text)


def test_every_kind_is_documented() -> None:
    for kind in Kind.__args__:
        assert re.search(rf"^\| `{kind}` \|", DATA, re.M), kind
