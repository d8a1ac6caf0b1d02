"""Hooks of mkdocs: pages made of what lies outside docs/, and formulas as MathML, which browsers draw by themselves.

README.md becomes the first page; CHANGELOG.md, CONTRIBUTING.md, every notebook, every subpackage's `__all__` and every
source file that a document names become pages too, so that a link works on GitHub and on the site.
"""

import html
import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
SUBPACKAGES = ("ops", "layers", "models", "tasks", "training", "inference", "data", "distributed", "convert")
# Of the source files that become pages, by their suffix.
_LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".sh": "bash",
    ".sbatch": "bash",
    "": "text",
}
_LINK = re.compile(r"(\]\()(?!https?:|#|data:|mailto:)([^)#\s]*)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the pictures and records that documents name."""
    pages = {new: (ROOT / old).read_text() for old, new in MOVED.items()}
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        names = {"unique_key": notebook.stem}
        pages[f"notebooks/{notebook.stem}.md"], made = MarkdownExporter().from_filename(str(notebook), names)
        for name, picture in made["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    pages |= {f"api/{subpackage}.md": api_page(subpackage) for subpackage in SUBPACKAGES}
    pages["api/index.md"] = api_index()
    documents = pages | {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in documents.items():
        for target in named_files(page, text):
            if target.startswith("docs/") or target in MOVED:
                continue
            if Path(target).suffix in _LANGUAGES:
                pages[source_uri(target)] = source_page(target)
            elif files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links that are right in the repository into links that are right on the site."""
    uri = page.file.src_uri

    def relink(match: re.Match[str]) -> str:
        target = site_path(resolve(uri, match[2]))
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[3]}"

    return _LINK.sub(relink, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas become MathML."""
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _display, content, flags=re.DOTALL)


def resolve(page: str, link: str) -> str:
    """The path in the repository that a link on a page means; `page` is relative to docs/ on the site."""
    moved = {new: old for old, new in MOVED.items()}
    return posixpath.normpath(posixpath.join(posixpath.dirname(moved.get(page, f"docs/{page}")), link))


def site_path(path: str) -> str:
    """Where the site has a path of the repository."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return source_uri(path) if Path(path).suffix in _LANGUAGES else path


def source_uri(path: str) -> str:
    """The page of a source file."""
    return f"source/{path}.md"


def named_files(page: str, text: str) -> set[str]:
    """The paths in the repository that the links of a page mean."""
    return {resolve(page, match[2]) for match in _LINK.finditer(text)}


def source_page(path: str) -> str:
    """A source file as a page."""
    language = _LANGUAGES[Path(path).suffix]
    front = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"
    return f"{front}# {path}\n\n````{language}\n{(ROOT / path).read_text()}````\n"


def api_index() -> str:
    """The subpackages with a public surface, and what each of them is."""
    lines = ["# API", "", "What each subpackage offers; everything else in it may change without notice.", ""]
    for subpackage in SUBPACKAGES:
        module = importlib.import_module(f"transnormer_jax.{subpackage}")
        summary = (module.__doc__ or "").partition("\n")[0]
        lines.append(f"- [`transnormer_jax.{subpackage}`]({subpackage}.md): {summary}")
    return "\n".join(lines) + "\n"


def api_page(subpackage: str) -> str:
    """The public names of a subpackage, each by its docstring."""
    module = importlib.import_module(f"transnormer_jax.{subpackage}")
    blocks = [f"# transnormer_jax.{subpackage}", (module.__doc__ or "").strip()]
    for name in module.__all__:
        # By the module that defines it: a function may bear the name of its module.
        member = getattr(module, name)
        is_code = isinstance(member, type) or callable(member)
        home = member.__module__ if is_code and member.__name__ == name else module.__name__
        blocks.append(f"::: {home if home.startswith('transnormer_jax') else module.__name__}.{name}")
    return "\n\n".join(blocks) + "\n"


def _inline(match: re.Match[str]) -> str:
    return convert(html.unescape(match[1]))


def _display(match: re.Match[str]) -> str:
    return f'<div class="formula">{convert(html.unescape(match[1]), display="block")}</div>'
