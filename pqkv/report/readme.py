"""Sections of a README as HTML that can stand in a page of its own: no raw HTML, no picture, no link to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


def section(readme: str, *titles: str) -> str:
    """The Markdown below the first second-level heading that is one of `titles`, in that order of preference, up to
    the next heading as high; empty where there is none.
    """
    tokens = _parser().parse(readme)
    lines = readme.splitlines()
    starts = [
        (token, tokens[index + 1].content.strip().lower())
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag in ("h1", "h2") and token.level == 0
    ]
    for title in titles:
        for index, (token, text) in enumerate(starts):
            if token.tag == "h2" and text == title.lower() and token.map:
                following = starts[index + 1][0].map if index + 1 < len(starts) else None
                return "\n".join(lines[token.map[1] : following[0] if following else None]).strip()
    return ""


def to_html(markdown: str) -> str:
    """Markdown as HTML: tables and code scroll in boxes of their own, headings stand below the page's."""
    parser = _parser()
    return str(parser.render(markdown))


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    rules = {
        "heading_open": _heading,
        "heading_close": _heading,
        "table_open": _table_open,
        "table_close": _table_close,
        "link_open": _link,
        "link_close": _link,
        "image": _image,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _heading(renderer: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:  # noqa: ANN401 - its callback
    level = min(6, int(tokens[index].tag[1]) + 1)
    return f"<{'/' if tokens[index].nesting < 0 else ''}h{level}>"


def _table_open(renderer: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:  # noqa: ANN401 - its callback
    return '<div class="scroll" role="region" aria-label="Table" tabindex="0"><table>\n'


def _table_close(renderer: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:  # noqa: ANN401 - its callback
    return "</table></div>\n"


def _link(renderer: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:  # noqa: ANN401 - its callback
    """A link to the web stays one; a path would lead nowhere from a page that is passed on alone."""
    token = tokens[index]
    if token.nesting > 0:
        token.meta["web"] = str(token.attrGet("href") or "").startswith(("https://", "http://"))
        return str(renderer.renderToken(tokens, index, options, env)) if token.meta["web"] else ""
    opening = next(other for other in reversed(tokens[:index]) if other.type == "link_open")
    return "</a>" if opening.meta.get("web") else ""


def _image(renderer: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:  # noqa: ANN401 - its callback
    from html import escape

    return f"<em>{escape(tokens[index].content)}</em>"
