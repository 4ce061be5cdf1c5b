"""A page taken apart."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: its elements with attributes, the text of each element, and whether the tags balance."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = self.script = ""
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "small":
            self.handle_data(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script += data
        elif self.open and self.open[-1] != "style":
            self.text += data
            if "tr" in self.open and self.rows and self.rows[-1]:
                self.rows[-1][-1] += data

    def all(self, tag, kind=None):
        """The attributes of all elements of a tag, of one class if it is given."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [each for each in found if kind is None or kind in (each.get("class") or "").split()]

    def row(self, first, number=0):
        found = [
            [" ".join(cell.split()) for cell in row] for row in self.rows if row and row[0].strip() == first
        ]
        return found[number]

    @property
    def words(self):
        return " ".join(self.text.split())
