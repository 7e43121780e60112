"""Check what eef derives from chat templates and tokenizers: a table of families and checks, each cell run.

    python experiments/check_models.py TOKENIZERS [--templates FOLDER] [--count 300] [--out figures/models]

TOKENIZERS is a folder of tokenizer folders (``tokenizer.json``, plain or ``.xz``, with ``tokenizer_config.json``).
``--templates`` is a folder of ``*_training.jinja`` chat templates, such as ``trl/chat_templates`` of an unpacked TRL
wheel; each is put on the tokenizer of its family, or of another one with its control tokens added. The columns:

prompt      at every turn of random conversations the prompt is the template's own ids (see ``rendering``)
whole       so is the conversation with its answers
end         every answer is learnt with this end
contents    no page and no answer puts a control token anywhere (pages spell all control tokens of the tokenizer)
constrained constrained decoding: all actions of random pages, and their instruction as a search, can be said, and
            random choices among what is allowed always end in an available action or a search of words of the page
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers import AutoTokenizer

from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.scaffold import DATE
from eef.trajectory import Trajectory, Turn

BASES = {"qwen": "qwen3", "llama": "llama3_1", "gemma": "gemma3", "diffusion_gemma": "gemma3", "gptoss": "gptoss",
         "deepseek": "deepseek_v3"}  # fmt: skip
OTHER = "qwen3"  # the tokenizer of templates whose own one is not there
IMAGES = ("idefics", "llava", "smolvlm")  # their templates take lists of images and texts, not texts
CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[(?:gMASK|/?INST)\]")
WORDS = (
    "red blue shirt men's size x-large 9.5 2-in-1 crème Größe дом 家 😀 مرحبا \u200b [SEP] search[ ] click[ (50%) "
    "$10.71 Thought: Action: B09QXYZ123 it's < > & | / \\ \n \t"
).split(" ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", type=Path)
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--count", type=int, default=300, help="random conversations, and pages, of each family")
    parser.add_argument("--out", type=Path, default=Path("figures/models"))
    options = parser.parse_args()
    rows = [check(name, tokenizer, options.count) for name, tokenizer in tqdm(list(families(options)))]
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "templates.csv", index=False)
    (options.out / "templates.md").write_text(markdown(table), encoding="utf-8")
    print(table.to_string())
    checks = table[["prompt", "whole", "contents", "constrained_decoding"]]
    sys.exit(int(not (checks == "ok").all(axis=None)))


def families(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Names of families with their tokenizers, which are loaded one at a time."""
    folders = sorted(folder.name for folder in options.tokenizers.iterdir() if folder.is_dir())
    for name in folders:
        yield name, lambda name=name: load(options.tokenizers / name)
    for path in sorted(options.templates.glob("*_training.jinja")) if options.templates else ():
        name = path.stem.removesuffix("_training")
        if not name.startswith(IMAGES):
            base = next((base for start, base in BASES.items() if name.startswith(start)), OTHER)
            yield f"{name} (TRL)", lambda path=path, base=base: with_template(load(options.tokenizers / base), path)


def load(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as there:
        for path in folder.iterdir():
            if path.suffix == ".xz":
                (Path(there) / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
            else:
                shutil.copy(path, there)
        tokenizer = AutoTokenizer.from_pretrained(there)
    tokenizer.name_or_path = folder.name
    return tokenizer


def with_template(tokenizer: Any, path: Path) -> Any:
    """The tokenizer with another template, whose control tokens it gets where it lacks them."""
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    text = by_template(tokenizer, messages[:3], True, tokenize=False) + by_template(
        tokenizer, messages, False, tokenize=False
    )
    known = tokenizer.get_vocab()
    lacks = sorted(set(CONTROL.findall(text)) - set(known))
    tokenizer.add_special_tokens({"extra_special_tokens": lacks}, replace_extra_special_tokens=False)
    return tokenizer


def by_template(tokenizer: Any, messages: list[dict[str, str]], generation: bool, tokenize: bool = True) -> Any:
    """What the tokenizer's own template gives, on the fixed day and with thinking off where it can be."""
    template = re.sub(
        r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""",
        lambda match: repr(DATE.strftime(match[2])),
        tokenizer.get_chat_template(),
    )
    return tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=generation, tokenize=tokenize, enable_thinking=False,
        thinking=False, **({"return_dict": False} if tokenize else {}),
    )  # fmt: skip


def check(name: str, make: Any, count: int) -> dict[str, Any]:
    """One row of the table; a cell holds ``ok`` or what went wrong."""
    row: dict[str, Any] = {"family": name}
    try:
        tokenizer = make()
        row["tokenizer"] = tokenizer.name_or_path
        ends = [tokenizer.convert_tokens_to_ids("<|user|>")] if name.startswith("glm") else []
        chat = Chat.of(tokenizer, ends=ends)
    except ValueError as error:
        return row | {"rendering": f"refused: {error}"}
    row |= {"rendering": chat.scaffold.rendering, "end": tokenizer.decode(chat.end)}
    for column, body in (("prompt", prompts), ("whole", wholes), ("contents", contents), ("constrained", constraints)):
        try:
            body(chat, random.Random(f"{name} {column}"), count)
            row[column] = "ok"
        except Exception as error:
            traceback.print_exc()
            row[column] = f"{type(error).__name__}: {error}"
    return row


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 30))).strip() or "x"


def prompts(chat: Chat, rng: random.Random, count: int) -> None:
    """At every turn, the ids before an answer."""
    for _ in range(count):
        talk, messages, ids = chat.begin(), list[dict[str, str]](), list[int]()
        for _ in range(4):
            messages.append({"role": "user", "content": text_of(rng)})
            ids += talk.encode_observation(messages[-1]["content"])
            own = by_template(chat.tokenizer, messages, True)
            if chat.scaffold.rendering == "prefilled":
                assert ids[: len(own)] == own
            elif chat.scaffold.rendering == "past answers":
                assert own[: len(ids)] == ids
            else:
                assert ids == own
            messages.append({"role": "assistant", "content": text_of(rng)})
            if chat.scaffold.rendering == "thinking off":  # the template leaves the empty thought out of past answers
                messages_so_far = [*messages, {"role": "user", "content": "x"}]
                whole = by_template(chat.tokenizer, messages_so_far, False)
                said = talk.encode_action(messages[-1]["content"])
                thought = next(at for at in range(40) if whole[len(ids) - at : len(ids) - at + len(said)] == said)
                ids = ids[: len(ids) - thought]
            ids += talk.encode_action(messages[-1]["content"])


def wholes(chat: Chat, rng: random.Random, count: int) -> None:
    """Past answers and the pages after them."""
    thought = (
        chat.tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
        if chat.scaffold.rendering == "thinking off"
        else []
    )
    for _ in range(count):
        texts = [text_of(rng) for _ in range(9)]
        turns = tuple(Turn(said, page) for said, page in zip(texts[1::2], texts[2::2], strict=True))
        ids, mask = chat.render(Trajectory("0", texts[0], turns), [True] * len(turns))
        learnt = [token for token, carries in zip(ids, mask, strict=True) if carries]
        assert sum(learnt[at : at + len(chat.end)] == list(chat.end) for at in range(len(learnt))) == len(turns)
        ids = _without(ids, thought)
        messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]
        assert by_template(chat.tokenizer, messages, False)[: len(ids)] == ids


def _without(ids: list[int], part: list[int]) -> list[int]:
    out = list(ids)
    for at in range(len(out) - len(part), -1, -1) if part else ():
        if out[at : at + len(part)] == part:
            del out[at : at + len(part)]
    return out


def contents(chat: Chat, rng: random.Random, count: int) -> None:
    """Pages, instructions and answers that spell control tokens."""
    added = [token.content for token in chat.tokenizer.added_tokens_decoder.values()]
    control = {
        at for at, token in chat.tokenizer.added_tokens_decoder.items() if token.content.replace("▁", " ").strip()
    }
    plain = Trajectory("0", "x", (Turn("x", "x"), Turn("x", "x")))
    own = [token for token in chat.render(plain, [True, True])[0] if token in control]
    for _ in range(count):
        page, said, second = (
            rng.choice(["", " ", " [SEP] "]).join(rng.choices(added + WORDS, k=rng.randint(0, 40))) for _ in range(3)
        )
        ids, _ = chat.render(Trajectory("0", page, (Turn(said, second), Turn(second, page))), [True, True])
        assert [token for token in ids if token in control] == own


def constraints(chat: Chat, rng: random.Random, count: int) -> None:
    """Constrained decoding on random pages."""
    for _ in range(max(1, count // 10)):
        words = [word for word in WORDS if word.strip() and "[" not in word and "]" not in word]
        names = {" ".join(rng.choices(words, k=rng.randint(1, 5))).lower() for _ in range(rng.randint(1, 12))}
        names |= {f"{name} [2 pack]" for name in list(names)[:2]} | {"buy now"}
        instruction = " ".join(rng.choices(words, k=rng.randint(1, 20)))
        talk = chat.begin()
        talk.encode_observation(instruction)
        available = {"has_search_bar": True, "clickables": sorted(names)}
        allowed = Constraints.of(talk, available, instruction, longest=400)
        for action in [f"click[{name}]" for name in names] + [f"search[{instruction}]"]:
            said: list[int] = []
            for token in talk.encode_action(action):
                assert token in allowed.allowed(said), (action, said)
                said.append(token)
            assert allowed.allowed(said) == [] and allowed.action(said) == action
        for _ in range(5):
            said = []
            while choices := allowed.allowed(said):
                said.append(rng.choice(choices))
            action = allowed.action(said)
            searched = re.fullmatch(r"search\[(.+)\]", action)
            assert action in {f"click[{name}]" for name in names} or searched, action


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in table.fillna("").itertuples(index=False):
        lines.append("| " + " | ".join(str(value).replace("|", "\\|").replace("\n", "⏎") for value in row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
