"""The pages: links, anchors, files, commands, formats and numbers that they show are real."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from eef.cli import main
from eef.envs import make_env, replay
from eef.sweeps.points import expand, sweep_label
from eef.sweeps.spec import check, read_spec
from eef.trajectory import load

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "figures").rglob("*.md"))]
MARKDOWN = MarkdownIt("commonmark").enable("table")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name)
each_of_docs = pytest.mark.parametrize("page", DOCS, ids=name)


@cache
def tokens(page: Path) -> list[Token]:
    return MARKDOWN.parse(page.read_text(encoding="utf-8"))


def inline(page: Path, kind: str) -> Iterator[Token]:
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    names: list[str] = []
    for heading, text in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            plain = "".join(child.content for child in text.children or () if child.type in ("text", "code_inline"))
            anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            names.append(f"{anchor}-{names.count(anchor)}" if anchor in names else anchor)
    return set(names)


def blocks(language: str, pages: list[Path] = DOCS) -> list[tuple[Path, str]]:
    return [
        (page, token.content)
        for page in pages
        for token in tokens(page)
        if token.type == "fence" and token.info.strip() == language
    ]


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = [str(token.attrs["href"]) for token in inline(page, "link_open")]
    links += [str(token.attrs["src"]) for token in inline(page, "image")]
    wrong = []
    for link in links:
        address, _, anchor = unquote(link).partition("#")
        target = (page.parent / address).resolve() if address else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@each_page
def test_files_named_in_code_exist(page: Path) -> None:
    named = re.compile(
        r"(?:^|(?:python|pytest|lab|sweep) )((?:eef|docs|figures|experiments|notebooks|tests)/[\w./*-]*\w)(?= |$)"
    )
    code = [token.content for token in inline(page, "code_inline")]
    code += [line for token in tokens(page) if token.type == "fence" for line in token.content.splitlines()]
    paths = [path for text in code for path in named.findall(text)]
    created = ("experiments/runs", "experiments/base_", "figures/NAME", "eef/envs/NAME")  # by commands and readers
    assert [path for path in paths if not path.startswith(created) and not list(ROOT.glob(path))] == []


def test_every_page_is_in_the_index_and_in_the_site() -> None:
    index = {
        (ROOT / "docs" / str(token.attrs["href"])).resolve() for token in inline(ROOT / "docs/index.md", "link_open")
    }
    missing = [name(page) for page in DOCS if page.parent == ROOT / "docs" and page not in index]
    assert missing == ["docs/index.md"]
    site = re.findall(r": ([\w/.]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name(page) for page in DOCS} <= set(site)
    assert [path for path in site if not (ROOT / path).is_file()] == []


# Commands


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """The commands ``eef ...`` of all pages, in blocks, and in code between backticks that names a command."""
    lines = [(page, line) for page, block in blocks("", PAGES) for line in block.replace("\\\n", "").splitlines()]
    lines += [(page, token.content) for page in PAGES for token in inline(page, "code_inline")]
    rows = []
    for page, line in lines:
        words = line.removeprefix(".venv/bin/").partition(" #")[0]
        if re.match(r"eef [a-z]", words) and "..." not in words:
            rows.append((name(page), tuple(shlex.split(words)[1:])))
    return sorted(set(rows))


@cache
def help_of(words: tuple[str, ...]) -> str | None:
    """The help of a command; None if there is no such command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main([*words, "--help"])
        except SystemExit as end:
            code = int(end.code or 0)
    return None if code else re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


GROUPS = ("runs", "webshop", "experts", "wandb")  # commands that have commands


def test_commands_have_the_options_that_pages_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")  # help must not break names of options
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    shown = commands()
    assert len(shown) > 40
    wrong = []
    for page, words in shown:
        size = 2 if words[0] in GROUPS and words[1:] and words[1][0] != "-" else 1
        text = help_of(words[:size])
        options = [word.partition("=")[0] for word in words[size:] if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)]
        if text is None or [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)]:
            wrong.append((page, " ".join(words)))
    assert wrong == []


def test_sweeps_that_pages_start_exist_and_have_the_parameters() -> None:
    started = [words for _, words in commands() if words[0] == "sweep" and len(words) > 1]
    files = {words[1]: ROOT / words[1] for words in started if words[1].startswith("experiments/")}
    assert len(started) > 15 and len(files) > 5
    specs = {name: read_spec(file) for name, file in files.items()}
    for spec in specs.values():
        check(spec, expand(spec))
    for words in started:
        if words[1] in specs:
            known = {*declared_names(str(specs[words[1]].notebook)), "seeds", "NAME"}
            parameters = [word.partition("=")[0] for option, word in pairwise(words) if option == "-p"]
            assert [parameter for parameter in parameters if parameter not in known] == [], words


@cache
def declared_names(notebook: str) -> list[str]:
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return re.findall(r"^(\w+) = ", source, re.MULTILINE)


def test_a_sweep_file_that_is_shown_is_valid(tmp_path: Path) -> None:
    shown = [(page, yaml.safe_load(text), text) for page, text in blocks("yaml")]
    assert len(shown) > 1
    for page, spec, text in shown:
        file = tmp_path / f"{page.stem}.yaml"
        file.write_text(text if "notebook" in spec else f"notebook: notebooks/experiment.ipynb\n{text}")
        sweep = read_spec(file)
        check(sweep, expand(sweep))


# Formats


def test_a_trajectory_that_is_shown_loads_and_replays(tmp_path: Path) -> None:
    (page, text), *more = blocks("jsonl")
    assert name(page) == "docs/file_formats.md" and not more
    (tmp_path / "mine.jsonl").write_text(text)
    (shown,) = load(tmp_path / "mine.jsonl")
    assert shown.failed and len(shown) > 1
    env = make_env("webshop")
    last = replay(env, shown.task, shown.actions, [shown.state(index) for index in range(len(shown) + 1)])
    assert last.done and last.reward == shown.reward and not last.info["won"]


def test_conversations_that_are_shown_load(tmp_path: Path) -> None:
    texts = [text for _, text in blocks("json") if "conversations" in text]
    (tmp_path / "eto.json").write_text(texts[0])
    (shown,) = load(tmp_path / "eto.json")
    assert len(texts) == 1 and shown.task == "209" and shown.actions == ["search[telescopic magnetic tripod]"]


def test_python_and_json_that_are_shown_are_valid() -> None:
    for _, text in blocks("python"):
        ast.parse(text)
    for _, text in blocks("json"):
        json.loads(text)


# Messages and numbers


@cache
def messages() -> list[str]:
    """The strings of the package, with a mark for each value that they contain."""
    texts = []
    for path in [*ROOT.glob("eef/**/*.py"), ROOT / "Makefile"]:
        if path.suffix != ".py":
            texts.append(path.read_text(encoding="utf-8"))
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_that_are_explained_exist() -> None:
    page = ROOT / "docs/troubleshooting.md"
    rows = re.findall(r"^\| (`.+?`)[^|]* \| [^|]+ \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    explained = [row.strip("`") for row in rows if " " in row and "command not found" not in row]
    assert len(explained) > 40
    missing = []
    for message in explained:
        pattern = re.compile(".*?".join(re.escape(part) for part in re.split(r"\.\.\.", message)), re.DOTALL)
        if not any(pattern.search(text) for text in messages()):
            missing.append(message)
    assert missing == []


def test_the_name_of_a_sweep_with_changed_parameters_is_real() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    (words,) = re.findall(r"^eef sweep experiments/demo.yaml (-p .*)$\n```", text, re.MULTILINE)
    values = [word.split("=", 1) for word in shlex.split(words) if word != "-p"]
    spec = read_spec(ROOT / "experiments" / "demo.yaml")
    assert f"called `{sweep_label(spec, {key: yaml.safe_load(value) for key, value in values})}`" in text
