"""Names of models that need no hub: those of this package, and those that come as Python packages."""

from __future__ import annotations

from pathlib import Path

from eef.files import PACKAGE, cache_folder

EMBEDDED_MODELS = {path.parent.name: path.parent for path in sorted(PACKAGE.glob("models/*/config.json"))}
PACKAGED_MODELS = ("smollm2",)  # made by `eef model NAME` (eef.models.packaged)


def packaged_folder(name: str) -> Path | None:
    """The folder of a packaged model, which may not exist yet; None for any other name."""
    return cache_folder() / "models" / name if name in PACKAGED_MODELS else None
