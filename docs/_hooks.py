"""What the site shows besides docs/: pages from elsewhere in the repository, and README's sections.

All links are written as paths in the repository, so that they lead somewhere wherever a page is
read; here they become links of the site. A line `<!-- README.md: ## Results -->` is replaced by
what stands under that heading, up to the next one.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ALSO = ("CHANGELOG.md", "configs/README.md", "benchmarks/*.md", "benchmarks/results/*.[mp][dn]*")
INCLUDE = re.compile(r"^<!-- (\S+\.md): (#+ .+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")  # the path of a link or an image; no address, no anchor


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and figures that lie elsewhere, under their paths in the repository."""
    for path in sorted(path for pattern in ALSO for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the sections of other files in, and make all links those of the site."""
    path = Path(str(page.file.abs_src_path)).resolve().relative_to(ROOT).as_posix()

    def included(found: re.Match[str]) -> str:
        text = section((ROOT / found[1]).read_text(), found[2])
        return with_site_links(text, found[1], page.file.src_uri, files)

    return INCLUDE.sub(included, with_site_links(markdown, path, page.file.src_uri, files))


def section(markdown: str, heading: str) -> str:
    """What stands under a heading, up to the next heading of any level.

    Raises:
        ValueError: If there is no such heading.
    """
    _, found, rest = f"\n{markdown}".partition(f"\n{heading}\n")
    if not found:
        raise ValueError(f"no heading {heading!r}; the page that shows its text must be changed")
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()


def with_site_links(markdown: str, path: str, page: str, files: Files) -> str:
    """Text of the file ``path`` with its links as seen from ``page`` of the site."""

    def relinked(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[0]))
        target = target.removeprefix("docs/")
        if target not in files.src_uris:
            return found[0]  # the strict build complains
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    return LINK.sub(relinked, markdown)
