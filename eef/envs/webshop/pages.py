"""The pages as text: the official observations in both modes, rendered from the products without HTML.

A page is a list of nodes, (kind, text). Mode ``text`` strips the texts and joins them with `` [SEP] ``. Mode
``text_rich`` puts each on its own line, and marks what can be clicked and what has been clicked.
"""

from __future__ import annotations

import json
from html import escape

from eef.envs.webshop.session import Shop, State, clickables

MODES = ("text", "text_rich")
_TEXT, _BUTTON, _OPTION, _ASIN = "text", "button", "option", "asin"
Node = tuple[str, str]

_THANKS = ("Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)")
_BOUGHT = ("attrs", "None", "category", "None", "query", "None", "product category", "None")
_TARGET = (
    "Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query",
    "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)",
)  # fmt: skip


def render_page(shop: Shop, state: State, mode: str = "text", show_attrs: bool = False) -> str:
    """The observation of ``state``; ``mode`` is ``text`` or ``text_rich``."""
    nodes = [node for node in _nodes(shop, state, show_attrs) if _visible(node[1])]
    if mode == "text":
        return " [SEP] ".join([text.strip() for _, text in nodes])
    return _rich(nodes, state)


def page_html(shop: Shop, state: State, show_attrs: bool = False) -> str:
    """A page as plain HTML with the texts of :func:`render_page`, for code that reads the official pages.

    Buttons have the class ``btn`` and links to products ``product-link``; option values are radio inputs with labels;
    the search bar has the id ``search_input``.
    """
    groups, parts = clickables(shop, state, show_attrs), []
    for kind, text in _nodes(shop, state, show_attrs):
        shown = escape(text)
        if kind == _OPTION:
            parts.append(f'<input type="radio" name="{escape(groups[text])}" value="{shown}"><label>{shown}</label>')
        else:
            form = {_BUTTON: '<button class="btn">%s</button>', _ASIN: '<a class="product-link">%s</a>'}
            parts.append(form.get(kind, "<p>%s</p>") % shown)
    if state.kind == "search":
        parts.append('<input id="search_input">')
    return f"<html><body>{''.join(parts)}</body></html>"


def _visible(text: str) -> bool:
    """Empty nodes and white space with a line break are not shown; other white space is a segment."""
    return text != "" and not (text.isspace() and "\n" in text)


def _nodes(shop: Shop, state: State, show_attrs: bool) -> list[Node]:
    instruction = shop.goals[state.goal].instruction_text
    if state.kind == "search":
        return [(_TEXT, "WebShop"), (_TEXT, "Instruction: "), (_TEXT, instruction), (_BUTTON, "Search")]
    if state.kind == "done":
        return [(_TEXT, text) for text in _done(state)]
    head = [(_TEXT, "Instruction:"), (_TEXT, instruction), (_BUTTON, "Back to Search")]
    if state.kind == "results":
        return head + _results(shop, state)
    head.append((_BUTTON, "< Prev"))
    return head + (_item(shop, state, show_attrs) if state.kind == "item" else _sub(shop, state))


def _results(shop: Shop, state: State) -> list[Node]:
    products, total = shop.results(state)
    nodes = [(_TEXT, f"Page {state.page} (Total results: {total})")]
    if state.page is not None and state.page > 1:
        nodes.append((_BUTTON, "< Prev"))
    nodes.append((_BUTTON, "Next >"))
    for product in products:
        nodes += [(_ASIN, product.asin), (_TEXT, product.title), (_TEXT, product.tag)]
    return nodes


def _item(shop: Shop, state: State, show_attrs: bool) -> list[Node]:
    product = shop.product(state)
    nodes: list[Node] = []
    for group, values in product.options:
        nodes.append((_TEXT, group))
        nodes += [(_OPTION, value) for value in values]
    nodes += [(_TEXT, product.title), (_TEXT, f"Price: {product.tag}"), (_TEXT, "Rating: N.A.")]
    buttons = ["Description", "Features", "Reviews", *(["Attributes"] if show_attrs else []), "Buy Now"]
    return nodes + [(_BUTTON, name) for name in buttons]


def _sub(shop: Shop, state: State) -> list[Node]:
    product = shop.product(state)
    if state.sub == "Description":
        return [(_TEXT, product.description)]
    if state.sub == "Features":
        return [(_TEXT, f" {bullet}") for bullet in product.bullets]
    if state.sub == "Attributes":
        kinds = (product.category, product.query, product.product_category)
        return [(_TEXT, f" {attribute}") for attribute in product.attributes] + [(_TEXT, kind) for kind in kinds]
    return []  # the official code loads no reviews


def _done(state: State) -> list[str]:
    options = json.dumps(dict(state.options), sort_keys=True)
    for char in "<>&'":
        options = options.replace(char, f"\\u{ord(char):04x}")
    bought = ["Purchased", "asin", state.asin or "", "options", options, *_BOUGHT]
    return [*_THANKS, *bought, *_TARGET, str(state.reward), "Reward Details ", "None"]


def _rich(nodes: list[Node], state: State) -> str:
    selected = ""
    if state.kind == "item":  # the official code looks for the quoted value in the page's address
        selected = f"{'+'.join(state.keywords or ())}/{state.page}/{json.dumps(dict(state.options))}"
    lines, clicked = [], []
    for kind, text in nodes:
        if kind == _BUTTON:
            lines.append(f"[button] {text} [button_]\n")
        elif kind == _OPTION:
            if f'"{text}"' in selected:
                clicked.append(f"You have clicked {text}.\n")
                lines.append(f"  [clicked button] {text} [clicked button_]\n")
            else:
                lines.append(f"  [button] {text} [button_]\n")
        elif kind == _ASIN:
            mark = "clicked button" if text in state.visited else "button"
            lines.append(f"\n[{mark}] {text} [{mark}_]\n")
        else:
            lines.append(f"{text}\n")
    return "".join(clicked[::-1] + lines)
