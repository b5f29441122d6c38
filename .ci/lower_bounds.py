"""Print setup.cfg's lower bounds as exact versions, to install and test all of them together.

    python3.11 -m venv low && low/bin/pip install $(python .ci/lower_bounds.py)
    low/bin/python -m pytest

Tools that only read the source (ruff, mypy, type stubs) are left out.
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
READ_ONLY = {"ruff", "mypy", "types-PyYAML"}


def requirements() -> list[str]:
    """Every requirement of setup.cfg, those of the extras too."""
    config = configparser.ConfigParser()
    config.read(SETUP)
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def lowest(requirement: str) -> str:
    """``name>=1.2,<2`` as ``name==1.2``."""
    match = re.match(r"([\w.\[\]-]+)>=([\w.]+)", requirement)
    assert match, f"{requirement} has no lower bound at its beginning"
    return "==".join(match.groups())


if __name__ == "__main__":
    pins = [lowest(requirement) for requirement in requirements()]
    print(*[pin for pin in pins if pin.split("==")[0] not in READ_ONLY])
