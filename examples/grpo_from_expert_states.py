"""GRPO of TRL from expert states: the embedded model plays on a server from where an expert lost.

    eef serve --port 8000
    python examples/grpo_from_expert_states.py --url http://127.0.0.1:8000

Each row names a subtask and the actions of an expert (``task`` and ``prefix``). The server replays them, compares every
page, and the policy plays on from there with the tools ``search`` and ``click``. Needs ``pip install eef[openenv]``.
This shows how the parts fit together. It is not a result: the rewards of a few steps are noisy.

For a language model that calls tools by itself (Qwen3, Llama 3, ...), leave out what concerns ``Words``: that class
rewrites pages as symbols, since the embedded model has a vocabulary of 456 words.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset
from openenv.core.generic_client import GenericEnvClient
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from eef.agents.chat import Chat
from eef.envs import make_env
from eef.envs.extras import extras_of, play_scripted
from eef.files import PACKAGE

NAME = "webshop"
# A tool call is written as the embedded model writes an action: search[ i0 i1 ], click[ r1 ]
TEMPLATE = """{%- for m in messages %}
{%- if m.role == 'assistant' %}<act> {{ m.content ~ ' ' if m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function.name }}[
{%- for name, value in call.function.arguments.items() %} {{ name ~ '=' if name != 'text' }}{{ value }}{% endfor %} ]
{{- ' ' }}{% endfor %}<end> {% else %}<obs> {{ m.content }} {% endif %}
{%- endfor %}{% if add_generation_prompt %}<act> {% endif %}"""
ANSWER = {  # how TRL reads a tool call
    "defaults": {"role": "assistant"},
    "start_anchor": "<act>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"(?P<name>search|click)\[\s*",
            "close_pattern": r"\s*\]\s*",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": {"text": "{content}"}}},
        },
        "content": {"close_pattern": r"<end>\s*", "content": "text"},
    },
}


class Words:
    """The pages and actions of one episode as symbols of the embedded model's vocabulary."""

    def __init__(self, chat: Chat) -> None:
        aliases = chat.begin().aliases
        assert aliases is not None
        self.aliases, self.pages = aliases, 0

    def page(self, text: str) -> str:
        self.pages += 1
        return self.aliases.encode(text, prompt=self.pages == 1)

    def messages(self, start: str, prefix: list[dict[str, str]]) -> list[dict[str, str]]:
        """The conversation up to an expert state. The last page is left out: the server sends it."""
        pages = [start, *(turn["observation"] for turn in prefix)]
        rows: list[dict[str, str]] = []
        for page, turn in zip(pages, prefix, strict=False):
            rows.append({"role": "user", "content": self.page(page)})
            rows.append({"role": "assistant", "content": self.aliases.encode_action(turn["action"])})
        return [*rows, {"role": "user", "content": ""}]


def expert_states(chat: Chat, count: int, back: int) -> Dataset:
    """Rows for the states that are ``back`` actions before the end of ``count`` failed expert trajectories."""
    env, experts, rows = make_env(NAME), extras_of(NAME).experts, []
    assert experts is not None
    noise = next(iter(experts.noise.values()))
    for seed, task in enumerate(env.tasks("train")):
        expert = play_scripted(experts, env, task, noise, seed)
        if len(rows) == count:
            break
        if expert.failed and expert.outcome == "done" and len(expert) > back:
            turns = expert.turns[: len(expert) - back]
            prefix = [{"action": turn.action, "observation": turn.observation} for turn in turns]
            prompt = Words(chat).messages(expert.prompt, prefix)
            rows.append({"prompt": prompt, "task": task, "start": expert.prompt, "prefix": prefix})
    return Dataset.from_list(rows)


def environment(url: str, chat: Chat) -> type:
    """The class of environments that TRL creates, one for each rollout of a batch."""

    class Shop:
        def __init__(self) -> None:
            self._client = GenericEnvClient(base_url=url).sync()
            self._reward, self._done, self._error = 0.0, False, None

        def reset(self, task: str, start: str, prefix: list[dict[str, str]], **columns: Any) -> str:
            result = self._client.reset(task=task, prompt=start, prefix=prefix)
            self._words = Words(chat)
            self._words.messages(start, prefix)
            self._reward, self._done, self._error = 0.0, False, None
            return self._words.page(result.observation["result"])

        def search(self, text: str) -> str:
            """Enter a query into the search bar.

            Args:
                text: The query.
            """
            return self._call("search", "query", text)

        def click(self, text: str) -> str:
            """Click a button, a product or an option of the page.

            Args:
                text: What to click.
            """
            return self._call("click", "element", text)

        def get_reward(self) -> float:
            if self._error is not None:  # TRL shows errors of a tool to the policy; a failure of the server is no loss
                raise self._error
            return self._reward

        def _call(self, tool: str, argument: str, text: str) -> str:
            if self._done:
                raise ValueError("the episode is over")
            action = self._words.aliases.decode_action(f"{tool}[ {text} ]")
            call = {"type": "call_tool", "tool_name": tool, "arguments": {argument: action[len(tool) + 1 : -1]}}
            try:
                result = self._client.step(call)
            except Exception as error:
                self._error = error
                raise
            self._reward, self._done = result.reward, result.done
            return self._words.page(result.observation["result"])

    return Shop


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--states", type=int, default=32, help="number of expert states")
    parser.add_argument("--back", type=int, default=1, help="actions that the expert made after the state")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", default="build/grpo")
    arguments = parser.parse_args()

    folder = PACKAGE / "models" / "embedded"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chat = Chat.of(tokenizer, aliases=NAME)
    rows = expert_states(chat, arguments.states, arguments.back)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, ANSWER
    config = GRPOConfig(
        output_dir=arguments.out,
        max_steps=arguments.steps,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=512,  # of a whole episode, its pages included
        generation_kwargs={"max_new_tokens": 24},  # of one action
        max_tool_calling_iterations=arguments.back + 1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,  # slow on a CPU
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=tokenizer,
        train_dataset=rows,
        args=config,
        environment_factory=environment(arguments.url, chat),
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    half = len(rewards) // 2
    print(f"mean reward by step: {' '.join(f'{reward:.2f}' for reward in rewards)}")
    print(f"first half {sum(rewards[:half]) / half:.3f}, second half {sum(rewards[half:]) / (len(rewards) - half):.3f}")


if __name__ == "__main__":
    main()
