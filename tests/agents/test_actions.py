"""Reading the action in an answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eef.agents.actions import EXPLANATIONS, Problem, describe_problems, problem_counts, read_action

FENCE = "```"

READ = [  # reply, action
    # one label, one action
    ("Action: click[x]", "click[x]"),
    ("Thought: I look.\nAction: search[red shirt]", "search[red shirt]"),
    ("Thought: I look.\n\nAction: open door to kitchen\n", "open door to kitchen"),
    ("Action:click[x]", "click[x]"),
    ("Action :  click[x]", "click[x]"),
    ("Action\uff1aclick[x]", "click[x]"),
    ("ACTION: click[x]", "click[x]"),
    ("action: look around", "look around"),
    ("Action 3: click[x]", "click[x]"),
    ("  \tAction: click[x]  ", "click[x]"),
    ("\ufeffAction: click[x]", "click[x]"),
    ("Thought: a\r\nAction: click[x]\r\n", "click[x]"),
    ("Action: 2", "2"),
    ("Action: teleport to art studio", "teleport to art studio"),
    # Markdown
    ("**Action:** click[x]", "click[x]"),
    ("**Action**: click[x]", "click[x]"),
    ("**Action: click[x]**", "click[x]"),
    ("**Action: look around**", "look around"),
    ("__Action:__ look around", "look around"),
    ("*Action*: look around", "look around"),
    ("### Action: click[x]", "click[x]"),
    ("- Action: click[x]", "click[x]"),
    ("- **Action:** `click[x]`", "click[x]"),
    ("> Action: click[x]", "click[x]"),
    ("2. Action: click[x]", "click[x]"),
    ("`Action: look around`", "look around"),
    ("Action: `click[x]`", "click[x]"),
    ("Action: **click[x]**", "click[x]"),
    ("Action: **look around**", "look around"),
    ('Action: "open door to kitchen"', "open door to kitchen"),
    ("Action: 'click[x]'.", "click[x]"),
    ("Action: “look around”", "look around"),
    ("**Action:** `**open door**`", "open door"),
    # on a later line, in a code fence
    ("Action:\nclick[x]", "click[x]"),
    ("Action:\n\n   look around", "look around"),
    ("Action:\n- look around", "look around"),
    (f"Action:\n{FENCE}\nclick[x]\n{FENCE}", "click[x]"),
    (f"**Action:**\n{FENCE}text\nopen door to kitchen\n{FENCE}\n", "open door to kitchen"),
    (f"Action: {FENCE}click[x]{FENCE}", "click[x]"),
    (f"Action: {FENCE}\nlook around\n{FENCE}", "look around"),
    (f"Thought: a\n{FENCE}\nAction: click[x]\n{FENCE}", "click[x]"),
    (f"{FENCE}\nThought: a\nAction: click[x]\n{FENCE}\nI press it.", "click[x]"),
    (f"{FENCE}\nAction: click[a]\n{FENCE}\nNo, better:\n{FENCE}\nAction: click[b]\n{FENCE}", "click[b]"),
    # brackets, punctuation, unicode
    ("Action: click[x].", "click[x]"),
    ("Action: click[x]!? ;", "click[x]"),
    ("Action: click[red [2 pack] (new)]", "click[red [2 pack] (new)]"),
    ("Action: click[7 [us]", "click[7 [us]"),
    ("Action: search[Action: the movie]", "search[Action: the movie]"),
    ('Action: search[men\'s "boots" `8` **new**]', 'search[men\'s "boots" `8` **new**]'),
    ("Action: search[größe 42 – 日本 👟 عربي]", "search[größe 42 – 日本 👟 عربي]"),
    ("Action: search[a\u200bb\u00a0c]", "search[a\u200bb\u00a0c]"),
    ("Action: search[]", "search[]"),
    ("Action: click[< Prev]", "click[< Prev]"),
    ("Action: search[<think tank> mug]", "search[<think tank> mug]"),
    # text before and after
    ("Action: click[a]\nWait, that is the wrong one.\nAction: click[b]", "click[b]"),
    ("Thought: my last Action: click[a] failed.\nAction: click[b]", "click[b]"),
    ("Action: click[x]\n\nThis opens the product page.", "click[x]"),
    ("Action: click[x]\nclick[x]", "click[x]"),
    ("Action: look around\nThought: then I go on", "look around"),
    ("Action: look around\n---\n", "look around"),
    ("Action: click[x]\nObservation: a page\nThought: b\nAction: click[y]", "click[x]"),
    ("**Action:** click[x]\n**Observation:** a page\n**Action:** click[y]", "click[x]"),
    ("Observation: this is the page\nThought: a\nAction: click[x]", "click[x]"),
    ("Thought: I look. Action: search[red shirt]", "search[red shirt]"),
    ("Thought: I look. **Action:** look around", "look around"),
    ("I look! Action: click[x]\nThought: b", "click[x]"),
    # thoughts
    ("<think>Maybe Action: click[buy now]? Too early.</think>… Action: click[b…1]", "click[b…1]"),
    ("<think>\nAction: click[a]\n</think>\n\nThought: b\nAction: click[b]", "click[b]"),
    ("<think>The page was\nObservation: a\n</think>\nAction: click[b]", "click[b]"),
    ("I could.\nAction: click[a]\n</think>\nAction: click[b]", "click[b]"),
    ("a </think> Action: click[a] </think>\nAction: click[b]", "click[b]"),
    ("<think>a <think> b</think>Action: click[b]", "click[b]"),
    ("<think>or\n[/THINK]\nAction: click[a]</think>Action: click[b]", "click[b]"),
    ("Action: click[b]\n<think>or\nAction: click[a]", "click[b]"),
    ("Action: <think>a or b?</think>click[b]", "click[b]"),
    ("<Thinking>Action: click[a]</Thinking>Action: click[b]", "click[b]"),
    ("<thought>Action: click[a]</thought>\nAction: click[b]", "click[b]"),
    ("[THINK]Action: click[a][/THINK]Action: click[b]", "click[b]"),
    ("<|START_THINKING|>Action: click[a]<|END_THINKING|>Action: click[b]", "click[b]"),
    (
        "<|channel|>analysis<|message|>Action: click[a]<|end|><|start|>assistant<|channel|>final<|message|>"
        "Action: click[b]",
        "click[b]",
    ),
    ("analysisWe could say Action: click[a]\nassistantfinalThought: a\nAction: click[b]", "click[b]"),
]

UNREADABLE = [  # reply, problem
    ("", Problem.NO_ACTION),
    ("  \n\t\n", Problem.NO_ACTION),
    ("I had rather not.", Problem.NO_ACTION),
    ("click[x]", Problem.NO_ACTION),
    ("Thought: Action is needed.\nactions: click[x]", Problem.NO_ACTION),
    ("The format is Action: click[x]", Problem.NO_ACTION),
    ("It is too early for Action: click[buy now].", Problem.NO_ACTION),
    ("Thought: lower case. action: click[x]", Problem.NO_ACTION),
    ("Action:", Problem.NO_ACTION),
    ("Action: click[a]\nAction:", Problem.NO_ACTION),
    ("**Action:** ``", Problem.NO_ACTION),
    ('Action: ""', Problem.NO_ACTION),
    (f"Action:\n{FENCE}\n\n{FENCE}", Problem.NO_ACTION),
    ("Action:\nObservation: a page\nAction: click[a]", Problem.NO_ACTION),
    ("Thought: a\nObservation: a page\nAction: click[a]", Problem.NO_ACTION),
    ("<think>I think.\nAction: click[a]", Problem.NO_ACTION),
    ("Action: click[a]\n</think>\nThought: hm", Problem.NO_ACTION),
    ("<think>a</thinking>\nAction: click[a]", Problem.NO_ACTION),
    ("[THINK]Action: click[a]", Problem.NO_ACTION),
    ("<|channel|>analysis<|message|>Action: click[a]<|end|>", Problem.NO_ACTION),
    ("analysisWe could.\nAction: click[a]", Problem.NO_ACTION),
    ("Action: click[a] or click[b]", Problem.AMBIGUOUS),
    ("Action: click[a] click[b]", Problem.AMBIGUOUS),
    ("Action: click[a], then Action: click[b]", Problem.AMBIGUOUS),
    ("Action: open door Action: look around", Problem.AMBIGUOUS),
    ("Action: Action: look around", Problem.AMBIGUOUS),
    ("Action: look around Observation: a room", Problem.AMBIGUOUS),
    ("Action: click[a] to open it", Problem.AMBIGUOUS),
    ("Action: click[a]]", Problem.AMBIGUOUS),
    ("Action: click[a", Problem.AMBIGUOUS),
    ("Action: click[a [b click[c]", Problem.AMBIGUOUS),
    ("Action: search[a <think> b", Problem.AMBIGUOUS),
    ("Action: click<think>a</think>[x]", Problem.AMBIGUOUS),
    ("Action: click[a]\nclick[b]", Problem.AMBIGUOUS),
    ("Action: click[a]\n\nor rather click[b]", Problem.AMBIGUOUS),
    ("Action:\n- click[a]\n- click[b]", Problem.AMBIGUOUS),
    ("Action: open door\ngo to kitchen", Problem.AMBIGUOUS),
    ("Action: look around\nThis shows the room.", Problem.AMBIGUOUS),
    ("Action:\nI press it.\nclick[a]", Problem.AMBIGUOUS),
    ("Action: click\nAction Input: a", Problem.AMBIGUOUS),
    (f"Action:\n{FENCE}\nclick[a]\nclick[b]\n{FENCE}", Problem.AMBIGUOUS),
    (f"{FENCE}\nAction: click[a]\nAction: click[b]\n{FENCE}", Problem.AMBIGUOUS),
    (f"Plan:\n{FENCE}\nAction: look around\nThought: b\nAction: wait\n{FENCE}", Problem.AMBIGUOUS),
    ("I try. Action: click[a]? No. Action: click[b]", Problem.AMBIGUOUS),
]

CUT = [  # a reply that was cut at the token limit, its action
    ("", ""),
    ("Thought: I look for", ""),
    ("<think>I could say\nAction: click[a]", ""),
    ("Action: click[b0", ""),
    ("Action: click[7 [us]", ""),  # could become: [us] wide]
    ("Action: open door", ""),  # could become: open door to kitchen
    ("Action: open door\n", ""),
    ("Action: click[a]\nWait, that is", ""),
    ("Action: click[a]\nThought: n", ""),
    ("Action: click[a]<think>Hm", ""),
    ("Action: click[a]\nclick[b", ""),
    ("Action: click[a]", "click[a]"),
    ("**Action:** `click[a]`\n", "click[a]"),
    (f"Action:\n{FENCE}\nclick[red [2 pack]]\n{FENCE}", "click[red [2 pack]]"),
    ("Action: click[a]\nObservation: the pa", "click[a]"),
    ("Action: open door\nObservation: the do", "open door"),
    ("Action: click[a\nObservation: the pa", ""),
]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<|channel>thought\n", "<channel|>"),
        ("◁think▷", "◁/think▷"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<unused94>thought\n", "<unused95>"),
        ("<thoughts>", "</thoughts>"),
        ("<think >", "</think >"),
        ("<scratchpad>", "</scratchpad>"),
    ],
)
def test_thoughts_of_every_family_are_removed(opening: str, closing: str) -> None:
    thought = f"{opening}I could\nAction: click[a]\n"
    assert read_action(f"{thought}{closing}I am done.").problem is Problem.NO_ACTION
    assert read_action(f"{thought}or not").problem is Problem.NO_ACTION
    assert read_action(f"{thought}{closing}\nAction: click[b]").action == "click[b]"


@pytest.mark.parametrize(("reply", "action"), READ)
def test_an_action_is_read(reply: str, action: str) -> None:
    answer = read_action(reply)
    assert (answer.action, answer.problem) == (action, None)


@pytest.mark.parametrize(("reply", "problem"), UNREADABLE)
def test_an_unreadable_answer_has_a_problem_and_no_action(reply: str, problem: Problem) -> None:
    answer = read_action(reply)
    assert (answer.action, answer.problem) == ("", problem)


@pytest.mark.parametrize(("reply", "action"), CUT)
def test_a_cut_answer_counts_only_if_more_tokens_could_not_change_it(reply: str, action: str) -> None:
    answer = read_action(reply, cut=True)
    if "Observation" in reply and not action:
        assert (answer.action, answer.problem) == ("", Problem.AMBIGUOUS)  # the answer was finished, and is wrong
    else:
        assert (answer.action, answer.problem) == (action, None if action else Problem.CUT)


@pytest.mark.parametrize(
    ("reply", "cut", "action", "problem"),
    [
        ("click[x]", False, "click[x]", None),
        ("  search[ a b]\n", False, "search[ a b]", None),
        ("look around", False, "look around", None),
        ("click[a] click[b]", False, "click[a] click[b]", None),  # for the environment to refuse
        ("search[Action: the movie]", False, "search[Action: the movie]", None),
        ("<think>click[a]?</think>\nclick[b]", False, "click[b]", None),
        ("Thought: hm\nAction: click[x]", False, "click[x]", None),
        ("click[x]\nObservation: a page", False, "click[x]", None),
        ("", False, "", Problem.NO_ACTION),
        ("<think>click[a]", False, "", Problem.NO_ACTION),
        ("click[b0", True, "", Problem.CUT),
        ("open door", True, "", Problem.CUT),
        ("click[x]", True, "click[x]", None),
    ],
)
def test_without_react_the_whole_reply_is_the_action(
    reply: str, cut: bool, action: str, problem: Problem | None
) -> None:
    answer = read_action(reply, react=False, cut=cut)
    assert (answer.action, answer.problem) == (action, problem)


@pytest.mark.parametrize(
    ("reply", "rest"),
    [
        ("Action: click[a]\nObservation: b", "Observation: b"),
        ("<think>\nObservation: a\n</think>\nAction: click[a]\n**Observation:** b", "**Observation:** b"),
        ("<think>\nObservation: a\n</think>\nAction: click[a]", ""),
        ("Observation: a\nAction: click[a]", ""),
    ],
)
def test_the_end_is_where_an_invented_observation_begins(reply: str, rest: str) -> None:
    assert reply[read_action(reply).end :] == rest


WORDS = st.text(st.characters(categories=("L", "N"), include_characters=" -–'’,.&/😀"), min_size=1, max_size=20)
INSIDE = WORDS.map(str.strip) | st.tuples(WORDS, WORDS).map(lambda pair: f"{pair[0]}[{pair[1]}]")
ACTIONS = st.tuples(st.sampled_from(["click", "search"]), INSIDE).map(lambda pair: f"{pair[0]}[{pair[1]}]")
ACTIONS |= st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=5).map(" ".join)
FORMS = st.sampled_from(
    (
        "Action: {}", "Action:{}", "Action:\n{}", "**Action:** {}", "**Action**: {}", "**Action: {}**", "- Action: {}",
        "Action: `{}`", "ACTION: {}", "action: {}", 'Action: "{}"', "Action 1: {}", "Action: **{}**",
        "Action:\n```\n{}\n```", "Action: ```text\n{}\n```", "```\nAction: {}\n```", "Thought: so. Action: {}",
    )
)  # fmt: skip
TAGS = st.sampled_from(
    (
        ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"), ("", "</think>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    )
)  # fmt: skip
THOUGHTS = st.lists(
    st.sampled_from(("hm", "Action: click[buy now]", "\nObservation: a page", "\n", "```", "click[", "Thought: so. "))
).map("".join)


@given(ACTIONS, FORMS, TAGS, THOUGHTS, st.sampled_from(("", "Thought: I act.\n", "I act.\n\n")))
def test_an_action_is_read_in_any_form(action: str, form: str, tags: tuple[str, str], thoughts: str, lead: str) -> None:
    reply = f"{tags[0]}{thoughts}{tags[1]}\n{lead}{form.format(action)}"
    assert read_action(reply).action == action
    assert read_action(reply + "\nObservation: a page\nAction: click[other]", cut=True).action == action


@given(ACTIONS, ACTIONS, FORMS, st.sampled_from((" ", "\n", " or ", ", then ", "\n\n", "\nor\n", "\n- ")))
def test_two_different_last_actions_are_never_executed(first: str, second: str, form: str, between: str) -> None:
    pair = f"{first}{between}{second}"
    if first == second or ("[" not in pair and "\n" not in between):  # words in one line are one action
        return
    if "[" in second or "[" not in first:  # otherwise a line of words after a bracket is prose
        executed = read_action(form.format(pair)).action
        assert executed in ("", pair)  # the whole text is not an action of any environment
        assert executed == "" or not executed.startswith(("click[", "search["))


@given(ACTIONS, st.data())
def test_a_cut_action_is_never_executed(action: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(action) - 1))
    for react, lead in ((True, "Action: "), (False, "")):
        answer = read_action(lead + action[:size], react, cut=True)
        assert (answer.action, answer.problem) == ("", Problem.CUT)


@given(st.text(st.sampled_from("Action:[]`*\"' \n-<think>/0😀"), max_size=200), st.booleans(), st.booleans())
def test_any_text_gives_an_action_or_a_problem(reply: str, react: bool, cut: bool) -> None:
    answer = read_action(reply, react, cut)
    assert bool(answer.action) is (answer.problem is None) and 0 <= answer.end <= len(reply)
    assert answer.action in reply.replace("\r", "\n") or not react


UNITS = (
    "*", " ", "\n", "-", "> ", ". ", ".\n", "1.", "[", "]", "a[", '"', "`", "```\n", "“”", "<think>", "</think>", "x",
    "[THINK]", "Action", "Action:", "Action: ", "Action: x\n", ". Action: x", "Action: click[a]\n", "Observation:",
    "Thought: ", "\nObservation", "click[a] ", "\u200b", "analysis", "<|channel|>",
)  # fmt: skip


def seconds(reply: str) -> float:
    begin = time.process_time()
    for react in (True, False):
        read_action(reply, react, cut=True)
    return time.process_time() - begin


@pytest.mark.parametrize("unit", UNITS)
def test_long_replies_take_linear_time(unit: str) -> None:
    body = unit * (50_000 // len(unit))
    for reply in (body, f"Action: {body}", f"Action: click[{body}]", f"{body}\nAction: click[x]", f"Action:\n{body}a"):
        assert seconds(reply) < 1.0  # quadratic time would take minutes


def test_half_of_a_surrogate_pair_is_read_as_the_replacement_character() -> None:
    answer = read_action("Thought: \ud83d\nAction: search[cup \ud83d]\nObservation: \ude00")
    assert answer.action == "search[cup \ufffd]" and answer.end == 33
    assert read_action("Action: search[\U0001f600]").action == "search[\U0001f600]"


def test_problems_are_counted_and_described() -> None:
    infos = [{"tokens": 3, "no_action": 2, "ambiguous": 0, "cut": 1}, {"tokens": 1}, {"cut": 4}]
    counts = problem_counts(infos)
    assert counts == {"no_action": 2, "ambiguous": 0, "cut": 5}
    expected = "7 of 20 answers had no readable action: 2 no action, 5 cut at the token limit"
    assert describe_problems(counts, 20) == expected
    assert describe_problems(problem_counts([]), 20) == ""


def test_each_problem_is_explained_in_one_sentence() -> None:
    assert set(EXPLANATIONS) == set(Problem) and len(set(EXPLANATIONS.values())) == len(Problem)
    for text in EXPLANATIONS.values():
        assert text.endswith(".") and text.count(".") == 1 and read_action(text).problem is Problem.NO_ACTION
