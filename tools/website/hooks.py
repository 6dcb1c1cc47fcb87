"""What mkdocs calls while it builds: pages from beside docs/, the links to them, and checks of what was built."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from decoding.tools.website.checks import BuiltPage, structures
from decoding.tools.website.gallery import GALLERY, gallery_page, html_of
from decoding.tools.website.links import BESIDE, ROOT, linked_paths, page_of, page_of_code, with_links_of_the_site
from decoding.tools.website.reference import names_of_pages, pages

ASSETS = Path(__file__).parent / "assets"

log = get_plugin_logger("website")  # a warning is an error, since the build is strict


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside docs/, those of the API reference, those of files that pages link to, and scripts."""
    documents = [path for path in BESIDE if path.endswith(".md")]
    for path in documents:
        files.append(File.generated(config, page_of(path), abs_src_path=str(ROOT / path)))
    for name, text in pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    linked = {path for file in files.documentation_pages() for path in linked_paths(file.content_string, file.src_uri)}
    for path in sorted(path for path in linked.difference(documents) if not path.startswith("docs/")):
        files.append(File.generated(config, page_of(path), content=page_of_code(ROOT / path)))
    files.append(File.generated(config, "gallery.md", content=gallery_page()))
    for name, exhibit in GALLERY.items():
        files.append(File.generated(config, f"gallery/{name}.html", content=html_of(exhibit)))
    for asset in ASSETS.iterdir():
        files.append(File.generated(config, f"assets/javascripts/{asset.name}", abs_src_path=str(asset)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page, which are those of the repository, to pages of the site."""
    return with_links_of_the_site(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Warn where a page that forges show too has another structure here."""
    if page.file.abs_src_path is not None:
        forge, here = structures(page.file.content_string, html)
        if forge != here:
            log.warning(f"{page.file.src_uri}: a forge shows {forge}, the site {here}; indent what is in lists by 4")
    return html


def on_post_build(config: MkDocsConfig) -> None:
    """Raise unless every public name is in the API reference, and no page loads anything from elsewhere."""
    site = Path(config.site_dir)
    built = {path.relative_to(site).as_posix(): BuiltPage(path.read_text("utf-8")) for path in site.rglob("*.html")}
    missing = [
        f"{module}.{name} (api/{page})"
        for page, modules in names_of_pages().items()
        for module, names in modules
        for name in names
        if f"{module}.{name}" not in built[f"api/{page}.html"].ids
    ]
    if missing:
        raise PluginError(f"not in the API reference: {', '.join(missing)}")
    if elsewhere := {name: page.elsewhere for name, page in built.items() if page.elsewhere}:
        raise PluginError(f"pages that load something from elsewhere: {elsewhere}")
