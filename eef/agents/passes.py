"""Which conversations one forward pass reads together."""

from __future__ import annotations

PASS_ON_GPU = 2048  # tokens; an estimate of what a GPU reads while a pass is launched, not tuned


def similar_groups(slots: list[int], widths: list[int], lengths: list[int]) -> list[list[int]]:
    """Group slots that one pass can read without much padding.

    ``widths`` are the tokens to read, ``lengths`` those of the whole conversations. Slots of one group have similar
    widths and, if there is much to read, similar lengths. Slots with a few tokens to read stay together, because the
    number of passes then costs more than padding.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(slots)), key=lambda place: (widths[place] > 4, lengths[place])):
        for group in groups[::-1]:
            near = widths[place] <= 1.5 * widths[group[0]] and widths[group[0]] <= 1.5 * widths[place]
            similar = near and lengths[place] <= 1.3 * lengths[group[0]] + 64
            if similar or (widths[place] <= 4 and widths[group[0]] <= 4):
                group.append(place)
                break
        else:
            groups.append([place])
    return [[slots[place] for place in group] for group in groups]


def few_groups(slots: list[int], widths: list[int], padding: int = PASS_ON_GPU) -> list[list[int]]:
    """Group slots into few passes, in the order of their tokens to read.

    A slot joins the last group if this adds at most ``padding`` tokens of padding.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(slots)), key=lambda place: widths[place]):
        if groups and len(groups[-1]) * (widths[place] - widths[groups[-1][-1]]) <= padding:
            groups[-1].append(place)
        else:
            groups.append([place])
    return [[slots[place] for place in group] for group in groups]
