"""Print one of README's two commands: `python .ci/readme_commands.py 1` (quick start) or 2 (tests).

They are the first two fenced `bash` blocks, so that what is tested is what a reader copies.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def readme_commands() -> tuple[str, str]:
    """The quick start and the tests, as README writes them."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    if len(blocks) < 2:
        sys.exit(f"{README.name} has {len(blocks)} fenced bash blocks; expected quick start, tests")
    quick_start, tests, *_ = blocks
    return quick_start, tests


if __name__ == "__main__":
    print(readme_commands()[int(sys.argv[1]) - 1], end="")
