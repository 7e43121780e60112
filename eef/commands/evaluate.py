"""``eef evaluate`` evaluates by a named protocol; ``eef card`` writes the model card of a run's adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, Typer

from eef.commands import Overrides, Root, parse_overrides, runs_folder

app = Typer()


@app.command("evaluate", rich_help_panel="Run")
def _evaluate(
    what: Annotated[
        str | None,
        Argument(
            metavar="WHAT",
            help="A model (name or folder), an adapter folder, a run (id or folder), http://HOST:PORT of a vLLM server "
            "(with -p model=NAME), openai:MODEL@URL, or expert:NAME.",
        ),
    ] = None,
    protocol: Annotated[str | None, Option(metavar="NAME", help="A protocol, or its file; --list shows them.")] = None,
    overrides: Overrides = None,
    compare: Annotated[tuple[str, str] | None, Option(metavar="A B", help="Compare two evaluations.")] = None,
    subtasks: Annotated[
        int | None, Option(metavar="N", help="Only the first N: the card is partial. With --pin: how many.")
    ] = None,
    pin: Annotated[str | None, Option(metavar="FILE", help="Write a copy of the protocol for -p data=FOLDER.")] = None,
    show_list: Annotated[bool, Option("--list", help="List the protocols.")] = False,
    wandb: Annotated[Literal["offline", "online", "disabled"], Option(help="The copy on W&B.")] = "offline",
    key_variable: Annotated[str, Option(metavar="NAME", help="Variable with an endpoint's key.")] = "OPENAI_API_KEY",
    yes: Annotated[bool, Option("--yes", help="Do not ask before an endpoint is used.")] = False,
    root: Root = None,
) -> None:
    """Evaluate a model, an adapter or an expert by a named protocol, or compare two evaluations."""
    from eef.evaluation.protocol import names, read_protocol

    if show_list:
        for name in names():
            print(f"{name:<24} {read_protocol(name).title}")
        return
    folder = runs_folder(root)
    if compare:
        from eef.evaluation.compare import compare as compared
        from eef.evaluation.compare import find_evaluation

        print("\n".join(compared(*(find_evaluation(folder, word) for word in compare))))
        return
    if protocol is None or (what is None and not pin):
        raise ValueError("write eef evaluate WHAT --protocol NAME, or --compare A B; --list shows the protocols")
    options = parse_overrides(overrides)
    if "data" in options:
        options["data"] = str(options["data"])  # a folder may be called 2024
    from eef.evaluation.evaluate import evaluate, pin_protocol

    if pin:
        unused = [*([what] if what else []), *(f"-p {name}" for name in options if name != "data")]
        if unused:
            raise ValueError(
                f"--pin only copies the protocol and does not use {unused[0]}: change a copy, then pin that"
            )
        print(pin_protocol(protocol, options.get("data"), Path(pin), subtasks))
        return
    evaluation = evaluate(
        str(what), protocol, options, folder, subtasks=subtasks, wandb=wandb, key_variable=key_variable, yes=yes
    )
    print((evaluation / "card.md").read_text(encoding="utf-8"))
    print(f"card: {evaluation / 'card.md'}\ntrajectories: {evaluation / 'browser.html'}")


@app.command("card", rich_help_panel="Look at results")
def _card(
    run: Annotated[str, Argument(metavar="RUN", help="Its id, or a unique part of it.")],
    out: Annotated[str | None, Option(metavar="DIR", help="The folder.", show_default="ROOT/hub/RUN")] = None,
    model: Annotated[
        str | None, Option(metavar="NAME", help="The base model, if its files have moved.", show_default="the run's")
    ] = None,
    root: Root = None,
) -> None:
    """Write the adapter or the full model of a run with its model card into a folder that can be uploaded."""
    from eef.analysis.compare import find
    from eef.evaluation.model_card import write_model_card

    folder = runs_folder(root)
    run_folder = find(folder, run)
    target = Path(out) if out else folder / "hub" / run_folder.name
    write_model_card(run_folder, folder, target, model)
    print(f"{target}: upload it with `hf upload USER/NAME {target}`")
