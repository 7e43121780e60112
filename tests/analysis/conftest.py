"""What the tests of pictures share."""

from __future__ import annotations

from typing import Any

import pytest

from eef.analysis.drawing import write_picture


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """matplotlib's figure of each picture that a test draws, in order. Their files are written too."""
    figures: list[Any] = []

    def keep(figure: Any, *place: Any) -> None:
        write_picture(figure, *place)
        figures.append(figure)

    monkeypatch.setattr("eef.analysis.drawing.write_picture", keep)
    return figures
