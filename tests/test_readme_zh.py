"""README.zh.md says in Chinese what README.md says: neither changes without the other."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from featx.cli import app

ROOT = Path(__file__).parents[1]
EXTRA = "## 从常见教程到 featx"  # tutorials and their featx lines; only Chinese readers have it
CODE = re.compile(r"(`+)(.+?)\1")
LINK = re.compile(r"\]\(([^)]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Block(NamedTuple):
    """A heading, paragraph, list item, row of a table, or piece of code."""

    kind: str  # what it is, and the level of a heading or the number of columns of a row
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# the first row of measured figures
ROW = next(line for line in read("README.md").splitlines(True) if line.startswith("| resnet50 |"))


def blocks(text: str) -> Iterator[Block]:
    fence = r"```(?s:.*?)\n```"
    code = r"    .*\n(?:    .*\n|\n(?=    ))*"
    for found in re.finditer(rf"^(?:{fence}|{code}|[^\n]+(?:\n[^\n]+)*)", text, re.M):
        part = found[0]
        if part.startswith(("```", "    ")):
            yield Block("code", part)
        elif part.startswith("#"):
            yield Block(part.split()[0], part)
        elif part.startswith("|"):
            yield from (Block(f"row of {row.count('|')}", row) for row in part.splitlines())
        elif part.startswith("- "):
            yield from (Block("item", item) for item in re.split(r"\n(?=- )", part))
        else:
            yield Block("paragraph", part)


def of_both() -> tuple[list[Block], list[Block]]:
    """Blocks of the English and of the Chinese page, without their links to each other."""
    english, chinese = list(blocks(read("README.md"))), list(blocks(read("README.zh.md")))
    start = chinese.index(Block("##", EXTRA))
    end = next(i for i, block in enumerate(chinese) if i > start and block.kind == "##")
    del chinese[start:end], english[1], chinese[1]
    return english, chinese


def facts(block: Block, page: list[Block]) -> dict[str, object]:
    """What a block has in every language."""
    text = " ".join(block.text.split())
    if block.kind == "code":
        lines = block.text.splitlines()
        if block.text.lstrip().startswith("featx/"):  # the map of the code: files, what is in them
            return {"files": [re.split("  +", line.strip())[0] for line in lines]}
        return {"code": [re.sub(r"(^|\s+)#.*", "", line) for line in lines]}  # without comments
    links = LINK.findall(text)
    headings = [slug(other.text) for other in page if other.kind.startswith("#")]
    prose = LINK.sub("]", CODE.sub("", text))
    return {
        "spans of code": {code for _, code in CODE.findall(text)},
        "links": [headings.index(to[1:]) if to.startswith("#") else to for to in links],
        "figures": Counter(NUMBER.findall(prose)),
        "bold": prose.count("**"),
    }


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def differences(english: list[Block], chinese: list[Block]) -> list[str]:
    found = []
    for one, other in zip(english, chinese, strict=False):
        pair = f"{one.text[:200]}\n  and\n{other.text[:200]}"
        if one.kind != other.kind:
            return [*found, f"{one.kind} beside {other.kind}:\n{pair}"]
        there = facts(other, chinese)
        found += [
            f"{name}: {fact} beside {there[name]}:\n{pair}"
            for name, fact in facts(one, english).items()
            if fact != there[name]
        ]
    if len(english) != len(chinese):
        found.append(f"{len(english)} blocks beside {len(chinese)}")
    return found


def test_the_chinese_page_has_the_sections_code_options_links_and_figures_of_the_english() -> None:
    english, chinese = of_both()
    assert len(english) > 100
    assert Counter(block.kind for block in english)["code"] >= 8
    found = differences(english, chinese)
    assert not found, "\n\n".join(found[:3])  # one row too many shifts those below it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    featx evaluate\n", ""),  # a command
        (ROW, ""),  # of a table
        (ROW, ROW.replace("**", "**9", 1)),  # a figure in it
        ("29 to 48 images", "29 to 49 images"),  # and in a sentence
        ("(`--max-failed 0.1`)", ""),  # an option
        ("## In a notebook", "### In a notebook"),
        ("(recipes/README.md)", "(recipes/)"),
        ("    featx/few_shot.py                    learning curves\n", ""),  # a module
    ],
)
def test_a_change_of_one_page_alone_is_noticed(old: str, new: str) -> None:
    text = read("README.md")
    assert text.count(old) == 1
    changed = list(blocks(text.replace(old, new)))
    del changed[1]
    assert differences(changed, of_both()[1])


def test_the_pages_link_to_each_other() -> None:
    for name, link in (
        ("README.md", "[中文](README.zh.md)"),
        ("README.zh.md", "[English](README.md)"),
    ):
        assert list(blocks(read(name)))[1].text == link


def test_the_tutorials_name_every_recipe_and_only_commands_that_featx_has() -> None:
    text = read("README.zh.md")
    section = text[text.index(EXTRA) :]
    section = section[: section.index("\n## ", 1)]
    spans = [code for _, code in CODE.findall(section)]
    scripts = [ROOT / span.split()[1] for span in spans if span.startswith("bash ")]
    assert set(scripts) == set((ROOT / "recipes").glob("*.sh"))
    commands = [span for span in spans if span.startswith("featx ")]
    assert len(commands) >= 20
    group = typer.main.get_command(app)
    for line in commands:
        _, name, *words = shlex.split(line)
        command = group.get_command(None, name)
        assert command is not None, line
        with command.make_context(name, words):  # fails for a word that it does not know
            pass
