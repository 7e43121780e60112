"""Break the code one line at a time, and count how often the tests notice.

    python tests/mutations.py            all mutations (about 30 minutes on two cores)
    python tests/mutations.py seeds      mutations whose name contains a word

Each mutation is applied to a copy of the project, where its tests must fail. Mutations that survive are listed. More than
two survivors are an error (exit code 1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 2
JOBS = 2


KEYS = "tests/tracking/test_keys.py"


@dataclass(frozen=True)
class Mutation:
    """Replace ``old``, which occurs once in ``file``, by ``new``. ``tests`` are the arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def out_of_key(name: str, file: str, line: str, word: str = "setting") -> Mutation:
    """A mutation that leaves a field of a dataclass out of keys."""
    head, _, default = line.partition(" = ")
    new = f'{head} = field({f"default={default}, " if default else ""}metadata={{"key": None}})'
    return Mutation(f"keys: {name}", f"eef/{file}", f"    {line}\n", f"    {new}\n", f"{KEYS} -k {word}")


def setting_out_of_key(name: str, end: str) -> Mutation:
    """A setting that no longer counts in keys; ``end``: the last argument of its declaration."""
    return Mutation(f"keys: {name}", "eef/settings.py", f"{end})", f"{end}, key=None)", f"{KEYS} -k setting")


MUTATIONS = [
    # keys
    out_of_key("temperature of simulations", "agents/simulation.py", "temperature: float"),
    out_of_key("starts, which hold the subtasks", "agents/simulation.py", "starts: Sequence[Start]", "option_of_webshop"),
    out_of_key("seed of simulations", "agents/simulation.py", "seed: int", "the_seed"),
    out_of_key("adapter of simulations", "agents/simulation.py", "adapter: Path | None"),
    setting_out_of_key("learning rate", 'argument="learning_rate"'),
    setting_out_of_key("longest answer", '"longest answer; thoughts need more"'),
    setting_out_of_key("quantisation", "choices=QUANTIZATIONS"),
    Mutation("keys: subtasks of the experts", "eef/experts/__init__.py", "    tasks: Sequence[str]\n    seed: int\n",
             '    tasks: Sequence[str] = field(metadata={"key": None})\n    seed: int\n', f"{KEYS} -k option_of_webshop"),
    Mutation("keys: max_steps", "eef/tracking/stages.py", ', "max_steps": value.max_steps}', "}", f"{KEYS} -k option_of_webshop"),
    Mutation("keys: code of the environment", "eef/tracking/stages.py", "modules += source_modules(type(value))", "pass", f"{KEYS} -k ones_own"),
    Mutation("keys: code of scripted experts", "eef/tracking/stages.py", '"code": _code_key(value.__module__)}', '"code": ""}', f"{KEYS} -k function_counts"),
    Mutation("keys: releases of libraries", "eef/tracking/keys.py", "releases = {name: library_version(name) for name in sorted(libraries)}", "releases = {}", f"{KEYS} -k release"),
    Mutation("keys: `from eef import x`", "eef/tracking/keys.py",
             'names.extend([source, *(f"{source}.{alias.name}" for alias in node.names)])', "names.append(source)", f"{KEYS} -k imports_are_followed"),
    Mutation("keys: chat template of a model", "eef/tracking/keys.py", '{".md", ', '{".md", ".jinja", ', f"{KEYS} -k keyed_by_every"),
    Mutation("keys: contents of a folder", "eef/tracking/keys.py", "as_posix(): file_key(file) for file in paths", 'as_posix(): "" for file in paths', f"{KEYS} -k folder_counts"),
    Mutation("keys: a cached hash of a file that changed", "eef/tracking/keys.py", 'if cached["stat"] == list(stat):', "if cached:", f"{KEYS} -k large_files"),
    Mutation("keys: how WebShop shows pages", "eef/envs/webshop/__init__.py", '            "observation": observation,\n', "", f"{KEYS} -k option_of_webshop"),
    Mutation("keys: WebShop's seed of random results", "eef/envs/webshop/__init__.py", '            "seed": seed,\n        }\n', "        }\n", f"{KEYS} -k option_of_webshop"),
    Mutation("keys: ScienceWorld's step limits", "eef/envs/scienceworld/__init__.py",
             '            "limits": dict(self._limits),\n', "", f"{KEYS} -k option_of_scienceworld"),
    Mutation("keys: a run's environment", "eef/experiment.py", "[model_and_settings, environment, chat.hash,", "[model_and_settings, chat.hash,", f"{KEYS} -k own_folder"),
    Mutation("keys: a point's files", "eef/sweeps/inputs.py", 'return f"{path.stem}:{path_key(path)}" if path.is_file()',
             "return path.stem if path.is_file()", "tests/sweeps/test_sweep.py -k declared"),
    # seeds
    Mutation("seeds: without the iteration", "eef/lab.py", "return 1000 * self.seed + iteration", "return 1000 * self.seed",
             "tests/test_lab.py -k streams"),
    Mutation("seeds: one stream for all samples", "eef/lab.py", "Start(task, sample=sample)", "Start(task)", "tests/test_lab.py -k streams"),
    Mutation("seeds: one stream for two failures of a subtask", "eef/agents/episode.py",
             'sha256(f"{key}|{contents[id(expert)]}".encode())', "sha256(key.encode())", "tests/agents/test_rollout.py -k stream"),
    Mutation("seeds: equal starts share a stream", "eef/agents/episode.py", "[*stream, number] if number else stream", "stream", "tests/agents/test_rollout.py -k stream"),
    Mutation("seeds: a new adapter's", "eef/agents/policy.py", "torch.manual_seed(seed)", "torch.manual_seed(0)", "tests/agents/test_policy.py -k 'one_seed'"),
    Mutation("seeds: the experts'", "eef/experts/__init__.py", "source, tasks, seed, on_progress, journal", "source, tasks, 0, on_progress, journal", "tests/experts/test_experts.py -k seeded"),
    Mutation("seeds: temperature ignored", "eef/agents/sampling.py", "(logits.double() / temperature)", "logits.double()", "tests/agents/test_rollout.py -k temperature"),
    Mutation("seeds: random navigation without a start's own stream", "eef/agents/episode.py", "np.random.default_rng(navigation), prompt", "np.random.default_rng(3), prompt",
             "tests/agents/test_rollout.py -k stream_of_its_own"),
    # training
    Mutation("training: a schedule of epochs for updates", "eef/training/trainer.py", "max_steps=training.updates or -1", "max_steps=-1", "tests/training/test_trainer.py -k updates"),
    Mutation("training: a loss that is not finite", "eef/training/trainer.py", "    if not math.isfinite(value):\n        raise", "    if False:\n        raise",
             "tests/training/test_divergence.py -k too_high"),
    Mutation("training: losses filtered", "eef/training/trainer.py", "logging_nan_inf_filter=False", "logging_nan_inf_filter=True", "tests/training/test_divergence.py -k between"),
    Mutation("training: no warm-up", "eef/training/trainer.py", "warmup_steps=int(training.warmup_ratio * steps)", "warmup_steps=0", "tests/training/test_divergence.py -k warms"),
    # masks
    Mutation("masks: turns that are barred from loss", "eef/selection.py", "i >= self.learn_from and turn.learn for", "i >= self.learn_from for",
             "tests/test_selection.py"),
    Mutation("masks: one turn late", "eef/selection.py", "i >= self.learn_from and", "i > self.learn_from and", "tests/test_selection.py"),
    Mutation("masks: loss on observations", "eef/agents/chat.py", "mask += [False] * len(observation)", "mask += [learn[index]] * len(observation)", "tests/agents/test_chat.py"),
    Mutation("masks: of merged rows", "eef/training/rows.py", "tuple(a or b for a, b", "tuple(b for a, b", "tests/training/test_training_kinds.py -k 'one_row or branches'"),
    Mutation("masks: labels", "eef/training/rows.py", 'torch.where(torch.tensor(item["mask"]), torch.tensor(item["input_ids"]), IGNORE)',
             'torch.tensor(item["input_ids"])', "tests/training/test_trainer.py -k labels"),
    Mutation("masks: an invented observation is learnt", "eef/agents/episode.py", "learn = not is_cut and answer.end == len(reply)", "learn = not is_cut",
             "tests/agents/test_rollout.py -k thoughts"),
    Mutation("masks: a cut answer is learnt", "eef/agents/episode.py", "learn = not is_cut and answer.end == len(reply)", "learn = answer.end == len(reply)",
             "tests/agents/test_rollout.py -k cut_answer"),
    Mutation("masks: recovery behind beneficial actions", "eef/selection.py", 'if part.kind == "harmful" and', 'if part.kind == "beneficial" and',
             "tests/test_selection.py"),
    Mutation("masks: a state is never solved by its own win", "eef/selection.py", "if index >= state and win", "if index > state and win",
             "tests/test_selection.py"),
    Mutation("masks: random segments with other numbers of turns", "eef/selection.py", " if number == learnt[begin]]", "]", "tests/test_selection.py -k random_segment"),
    Mutation("masks: another expert's win is not refused", "eef/selection.py", "    _check(expert, outcomes)\n", "", "tests/test_selection.py"),
    # outcomes
    Mutation("outcomes: EEF forgets wins of earlier iterations", "eef/methods.py",
             "        for state, simulations in zip(state_keys, zip(*samples, strict=True), strict=True):",
             "        outcomes = {}\n        for state, simulations in zip(state_keys, zip(*samples, strict=True), strict=True):",
             "tests/test_methods.py -k earlier"),
    Mutation("outcomes: broken simulations are losses", "eef/methods.py", "if simulation.won or simulation.failed]:", "]:", "tests/test_methods.py -k broken"),
    Mutation("outcomes: a tie is a loss", "eef/selection.py", "2 * len(wins) >= len(simulations)", "2 * len(wins) > len(simulations)", "tests/test_methods.py -k at_least_half"),
    Mutation("outcomes: own pairs of earlier iterations", "eef/methods.py", "            simulations = []\n", "            pass\n", "tests/test_methods.py -k own_pairs"),
    Mutation("outcomes: states where an episode cannot be cut", "eef/methods.py", " if lab.env.can_start_here(t.state(i))]", "]", "tests/test_methods.py -k allows"),
    Mutation("outcomes: ETO learns from the last failures alone", "eef/methods.py", "for t in simulations if t.failed and t.task in first_wins]",
             "for t in simulations[-len(lab.tasks) * n :] if t.failed and t.task in first_wins]", "tests/test_methods.py -k eto_pairs"),
    Mutation("outcomes: an error counts as failed", "eef/trajectory.py",
             'return not self.won and (overflow or self.outcome in ("done", "max_steps"))',
             "return not self.won", "tests/agents/test_rollout.py -k 'diverge or overflows'"),
    Mutation("outcomes: an error counts in rates", "eef/analysis/statistics.py", 'rated = table[~table["error"].astype(bool)] if "error" in table else table',
             "rated = table", "tests/analysis/test_evaluate.py"),
    Mutation("outcomes: a divergence is an error of the environment", "eef/agents/episode.py",
             'return "replay_divergence" if isinstance(error, ReplayDivergence) else "env_error"', 'return "env_error"', "tests/agents/test_rollout.py -k diverge"),
    Mutation("outcomes: rewards above 1", "eef/trajectory.py", "if not 0 <= reward <= 1:", "if not 0 <= reward:", "tests/test_trajectory.py"),
    Mutation("outcomes: ETO's bought counts as won", "eef/trajectory.py", 'end = {"won": row["reward"] == 1}', 'end = {"won": row["reward"] > 0}', "tests/test_trajectory.py"),
    Mutation("outcomes: a killed run is finished on W&B", "eef/tracking/companion.py", "self.run.finish(exit_code=1)", "self.run.finish(exit_code=0)", "tests/tracking/test_live.py -k killed_run_keeps"),
    # normalisation
    Mutation("normalisation: DPO per piece of a batch", "eef/training/dpo.py", ".sum() / num_items_in_batch *", ".sum() *", "tests/training/test_trainer.py -k 'dpo or likelihoods'"),
    Mutation("normalisation: DPO without its reference", "eef/training/dpo.py", ' - batch["reference"].flatten()', "", "tests/training/test_trainer.py -k 'dpo or likelihoods'"),
    Mutation("normalisation: log-likelihood per token", "eef/training/likelihoods.py", "masked_scatter(learnt, logs).sum(-1)", "masked_scatter(learnt, logs).mean(-1)",
             "tests/training/test_trainer.py -k 'dpo or likelihoods'"),
    Mutation("normalisation: a task counts by its episodes", "eef/analysis/evaluate.py", '.groupby(rated["task"]).mean()\n', ".groupby(rated.index).mean()\n",
             "tests/analysis/test_evaluate.py"),
    Mutation("normalisation: the sign of a difference", "eef/analysis/statistics.py",
             'both[f"{value}_a"].astype(float) - both[f"{value}_b"].astype(float)', 'both[f"{value}_b"].astype(float) - both[f"{value}_a"].astype(float)',
             "tests/analysis/test_statistics.py"),
    Mutation("normalisation: intervals by the normal quantile", "eef/analysis/statistics.py", "_t_quantile(len(numbers) - 1) *", "1.96 *", "tests/analysis/test_statistics.py"),
    Mutation("normalisation: the expert's turns cost steps", "eef/analysis/evaluate.py", "len(trajectory) - trajectory.prefix", "len(trajectory)", "tests/analysis/test_evaluate.py"),
    Mutation("normalisation: equal wins count twice", "eef/selection.py", "by_key[key] = by_key.pop(key, trajectory)", "by_key[key, len(by_key)] = trajectory", "tests/test_methods.py -k distinct"),
    # models
    Mutation("models: control tokens in contents", "eef/agents/scaffold.py", "self._core.encode_special_tokens = True", "self._core.encode_special_tokens = False",
             "tests/agents/test_scaffold.py -k 'content or spells'"),
    Mutation("models: tokens of roles that are not special", "eef/agents/scaffold.py", 'if token.content.replace("▁", " ").strip()', "if token.special",
             "tests/agents/test_scaffold.py -k 'content or spells'"),
    Mutation("models: a template's parts are not checked", "eef/agents/chat_template.py", "        _check(template, scaffold)\n", "", "tests/agents/test_scaffold.py -k refused"),
    Mutation("models: the date of the day", "eef/agents/chat_template.py", "lambda match: repr(DATE.strftime(match[2])), source", "lambda match: match[0], source",
             "tests/agents/test_scaffold.py -k day"),
    Mutation("models: thinking is not turned off", "eef/agents/chat_template.py", "{name: False for name in _SWITCHES", "{name: True for name in _SWITCHES",
             "tests/agents/test_scaffold.py -k learnt"),
    Mutation("models: windows ignored", "eef/agents/attention_masks.py", "hidden |= key <= query - config.sliding_window", "pass", "tests/agents/test_architectures.py -k mistral"),
    Mutation("models: a window too wide by one", "eef/agents/attention_masks.py", "key <= query - config.sliding_window", "key < query - config.sliding_window",
             "tests/agents/test_architectures.py -k 'gemma3 or mistral'"),
    Mutation("models: chunks ignored", "eef/agents/attention_masks.py", "hidden |= key // config.attention_chunk_size < query", "hidden |= key < query",
             "tests/agents/test_architectures.py -k llama4"),
    Mutation("models: other ends", "eef/agents/model_files.py", "ids = getattr(each, \"eos_token_id\", None)", "ids = None", "tests/agents/test_engine.py -k end"),
    Mutation("models: ids beyond the tokenizer", "eef/agents/policy.py", "return token in self.stops or token >= self.chat.vocabulary_size", "return token in self.stops",
             "tests/agents/test_engine.py -k end"),
    Mutation("models: the memory of the cache", "eef/agents/cached_engine.py", "if (len(chosen) + 1) * max(longest, length + answer) <= capacity:", "if True:",
             "tests/agents/test_engine.py -k memory"),
    Mutation("models: a search is not closed in time", "eef/agents/search_constraint.py", "if cost <= highest and cost < math.inf", "if cost < math.inf", "tests/agents/test_constraints.py -k 'within_the_limit or short'"),
    Mutation("models: what is said stands for another action", "eef/agents/constraints.py", "return self.actions[state.low]", "return self.actions[0]",
             "tests/agents/test_constraints.py -k 'reachable or walks or random'"),
    Mutation("models: the first action counts", "eef/agents/actions.py", "last = actions[-1]", "last = actions[0]", "tests/agents/test_actions.py"),
    Mutation("models: thoughts are not cut", "eef/agents/actions.py", "text = _without_thoughts(reply).replace", "text = reply.replace", "tests/agents/test_actions.py"),
]  # fmt: skip


def copy_of_the_project(folder: Path) -> Path:
    names = ("eef", "tests", "notebooks", "experiments", "pyproject.toml")
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
        else:
            shutil.copy(source, folder / name)
    return folder


def is_noticed(mutation: Mutation) -> tuple[bool, str]:
    """Whether a test fails with the mutation, and the line of pytest that names the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = copy_of_the_project(Path(name))
        path = folder / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.name}: {mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}"
            )
        changed = text.replace(mutation.old, mutation.new)
        if "field(" in mutation.new and "dataclass, field" not in changed:
            changed = changed.replace("import dataclass", "import dataclass, field", 1)
        path.write_text(changed, encoding="utf-8")
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {mutation.tests}"
        env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
        lines = [line for line in process.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if process.returncode not in (0, 1):
            raise SystemExit(
                f"{mutation.name}: pytest {mutation.tests} could not run:\n{process.stdout}{process.stderr}"
            )
        return process.returncode == 1, lines[0] if lines else ""


def main(word: str = "") -> int:
    chosen = [mutation for mutation in MUTATIONS if word in mutation.name]
    survivors = []
    with ThreadPoolExecutor(JOBS) as threads:
        for mutation, (failed, line) in zip(chosen, threads.map(is_noticed, chosen), strict=True):
            print(f"{'noticed ' if failed else 'SURVIVED'}  {mutation.name}  {line[:100]}", flush=True)
            survivors += [] if failed else [mutation.name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations were noticed")
    return int(len(survivors) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
