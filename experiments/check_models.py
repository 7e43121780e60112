"""Check conversations with real chat templates and tokenizers, in a table of families and checks.

    python experiments/check_models.py TOKENIZERS [--templates FOLDER] [--count 300] [--out figures/models]

TOKENIZERS is a folder of tokenizer folders (``tokenizer.json``, plain or ``.xz``, with ``tokenizer_config.json``).
``--templates`` is a folder of ``*_training.jinja`` chat templates, such as ``trl/chat_templates`` of an unpacked TRL
wheel. Each is tried with the tokenizer of its family, or with another one that gets its control tokens. Columns:

prompt      in random conversations, the prompt of every turn equals the template's own ids (see ``rendering``)
whole       so does the whole conversation
end         the text that ends every answer and carries loss
contents    pages, instructions and answers that spell control tokens contain none
constrained constrained decoding allows all actions of random pages and a search for their instruction, and random
            choices among the allowed ids always end in an available action or in a search for words of the page
"""

from __future__ import annotations

import argparse
import lzma
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers import AutoTokenizer

from eef.agents.chat import Chat
from eef.agents.chat_template import DATE
from eef.agents.constraints import Constraints
from eef.trajectory import Trajectory, Turn

BASES = {"qwen": "qwen3", "llama": "llama3_1", "gemma": "gemma3", "diffusion_gemma": "gemma3", "gptoss": "gptoss",
         "deepseek": "deepseek_v3"}  # fmt: skip
OTHER = "qwen3"  # the tokenizer for the templates of all other families
IMAGES = ("idefics", "llava", "smolvlm")  # left out: their templates take lists of images and texts
CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[(?:gMASK|/?INST)\]")
WORDS = (
    "red blue shirt men's size x-large 9.5 2-in-1 crème Größe дом 家 😀 مرحبا \u200b [SEP] search[ ] click[ (50%) "
    "$10.71 Thought: Action: B09QXYZ123 it's < > & | / \\ \n \t"
).split(" ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", type=Path)
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--count", type=int, default=300, help="random conversations and pages per family")
    parser.add_argument("--out", type=Path, default=Path("figures/models"))
    options = parser.parse_args()
    rows = [check(name, tokenizer, options.count) for name, tokenizer in tqdm(list(families(options)))]
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "templates.csv", index=False)
    (options.out / "templates.md").write_text(markdown(table), encoding="utf-8")
    print(table.to_string())
    checks = table[["prompt", "whole", "contents", "constrained"]]
    sys.exit(int(not (checks == "ok").all(axis=None)))


def families(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of families, each with a function that loads its tokenizer."""
    folders = sorted(folder.name for folder in options.tokenizers.iterdir() if folder.is_dir())
    for name in folders:
        yield name, lambda name=name: load(options.tokenizers / name)
    for path in sorted(options.templates.glob("*_training.jinja")) if options.templates else ():
        name = path.stem.removesuffix("_training")
        if not name.startswith(IMAGES):
            base = next((base for start, base in BASES.items() if name.startswith(start)), OTHER)
            yield f"{name} (TRL)", lambda path=path, base=base: with_template(load(options.tokenizers / base), path)


def load(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.iterdir():
            if path.suffix == ".xz":
                (Path(copy) / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
            else:
                shutil.copy(path, copy)
        tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.name_or_path = folder.name
    return tokenizer


def with_template(tokenizer: Any, path: Path) -> Any:
    """The tokenizer with another template. Control tokens of the template that it lacks are added."""
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    text = by_template(tokenizer, messages[:3], True, tokenize=False) + by_template(
        tokenizer, messages, False, tokenize=False
    )
    missing = sorted(set(CONTROL.findall(text)) - set(tokenizer.get_vocab()))
    tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def by_template(tokenizer: Any, messages: list[dict[str, str]], generation: bool, tokenize: bool = True) -> Any:
    """The rendering of the tokenizer's own template, with the fixed date and, if it can, with thinking off."""
    template = re.sub(
        r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""",
        lambda match: repr(DATE.strftime(match[2])),
        tokenizer.get_chat_template(),
    )
    return tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=generation, tokenize=tokenize, enable_thinking=False,
        thinking=False, **({"return_dict": False} if tokenize else {}),
    )  # fmt: skip


def check(name: str, load_tokenizer: Callable[[], Any], count: int) -> dict[str, Any]:
    """One row of the table. A cell is ``ok`` or an error message."""
    row: dict[str, Any] = {"family": name}
    try:
        tokenizer = load_tokenizer()
        row["tokenizer"] = tokenizer.name_or_path
        ends = [tokenizer.convert_tokens_to_ids("<|user|>")] if name.startswith("glm") else []
        chat = Chat.of(tokenizer, ends=ends)
    except ValueError as error:
        return row | {"rendering": f"refused: {error}"}
    row |= {"rendering": chat.scaffold.rendering, "end": tokenizer.decode(chat.end)}
    checks = {
        "prompt": check_prompts,
        "whole": check_conversations,
        "contents": check_contents,
        "constrained": check_constraints,
    }
    for column, run in checks.items():
        try:
            run(chat, random.Random(f"{name} {column}"), count)
            row[column] = "ok"
        except Exception as error:
            traceback.print_exc()
            row[column] = f"{type(error).__name__}: {error}"
    return row


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 30))).strip() or "x"


def check_prompts(chat: Chat, rng: random.Random, count: int) -> None:
    """The ids before each answer."""
    for _ in range(count):
        dialogue, messages, ids = chat.begin(), list[dict[str, str]](), list[int]()
        for _ in range(4):
            messages.append({"role": "user", "content": text_of(rng)})
            ids += dialogue.encode_observation(messages[-1]["content"])
            expected = by_template(chat.tokenizer, messages, True)
            if chat.scaffold.rendering == "prefilled":
                assert ids[: len(expected)] == expected
            elif chat.scaffold.rendering == "past answers":
                assert expected[: len(ids)] == ids
            else:
                assert ids == expected
            messages.append({"role": "assistant", "content": text_of(rng)})
            if chat.scaffold.rendering == "thinking off":  # the template leaves the empty thought out of past answers
                whole = by_template(chat.tokenizer, [*messages, {"role": "user", "content": "x"}], False)
                answer = dialogue.encode_action(messages[-1]["content"])
                starts = [len(ids) - length for length in range(40)]
                ids = ids[: next(start for start in starts if whole[start : start + len(answer)] == answer)]
            ids += dialogue.encode_action(messages[-1]["content"])


def check_conversations(chat: Chat, rng: random.Random, count: int) -> None:
    """The ids of whole conversations, and which of them carry loss."""
    thought = (
        chat.tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
        if chat.scaffold.rendering == "thinking off"
        else []
    )
    for _ in range(count):
        texts = [text_of(rng) for _ in range(9)]
        turns = tuple(Turn(answer, page) for answer, page in zip(texts[1::2], texts[2::2], strict=True))
        ids, mask = chat.render(Trajectory("0", texts[0], turns), [True] * len(turns))
        loss_ids = [token for token, carries_loss in zip(ids, mask, strict=True) if carries_loss]
        ends = sum(loss_ids[place : place + len(chat.end)] == list(chat.end) for place in range(len(loss_ids)))
        assert ends == len(turns)
        ids = _without(ids, thought)
        messages = [{"role": "assistant" if turn % 2 else "user", "content": text} for turn, text in enumerate(texts)]
        assert by_template(chat.tokenizer, messages, False)[: len(ids)] == ids


def _without(ids: list[int], part: list[int]) -> list[int]:
    """``ids`` without every occurrence of ``part``."""
    rest = list(ids)
    for place in range(len(rest) - len(part), -1, -1) if part else ():
        if rest[place : place + len(part)] == part:
            del rest[place : place + len(part)]
    return rest


def check_contents(chat: Chat, rng: random.Random, count: int) -> None:
    """Pages, instructions and answers that spell control tokens."""
    added = [token.content for token in chat.tokenizer.added_tokens_decoder.values()]
    control = {
        token_id
        for token_id, token in chat.tokenizer.added_tokens_decoder.items()
        if token.content.replace("▁", " ").strip()
    }
    plain = Trajectory("0", "x", (Turn("x", "x"), Turn("x", "x")))
    expected = [token for token in chat.render(plain, [True, True])[0] if token in control]
    for _ in range(count):
        page, answer, second = (
            rng.choice(["", " ", " [SEP] "]).join(rng.choices(added + WORDS, k=rng.randint(0, 40))) for _ in range(3)
        )
        ids, _ = chat.render(Trajectory("0", page, (Turn(answer, second), Turn(second, page))), [True, True])
        assert [token for token in ids if token in control] == expected


def check_constraints(chat: Chat, rng: random.Random, count: int) -> None:
    """Constrained decoding on random pages."""
    for _ in range(max(1, count // 10)):
        words = [word for word in WORDS if word.strip() and "[" not in word and "]" not in word]
        names = {" ".join(rng.choices(words, k=rng.randint(1, 5))).lower() for _ in range(rng.randint(1, 12))}
        names |= {f"{name} [2 pack]" for name in list(names)[:2]} | {"buy now"}
        instruction = " ".join(rng.choices(words, k=rng.randint(1, 20)))
        dialogue = chat.begin()
        dialogue.encode_observation(instruction)
        available = {"has_search_bar": True, "clickables": sorted(names)}
        constraints = Constraints.of(dialogue, available, instruction, longest=400)
        for action in [f"click[{name}]" for name in names] + [f"search[{instruction}]"]:
            ids: list[int] = []
            for token in dialogue.encode_action(action):
                assert token in constraints.allowed(ids), (action, ids)
                ids.append(token)
            assert constraints.allowed(ids) == [] and constraints.action(ids) == action
        for _ in range(5):
            ids = []
            while allowed := constraints.allowed(ids):
                ids.append(rng.choice(allowed))
            action = constraints.action(ids)
            searched = re.fullmatch(r"search\[(.+)\]", action)
            assert action in {f"click[{name}]" for name in names} or searched, action


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.fillna("").itertuples(index=False):
        lines.append("| " + " | ".join(str(value).replace("|", "\\|").replace("\n", "⏎") for value in row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
