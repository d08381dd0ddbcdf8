"""Report pages and pictures, read back."""

from html.parser import HTMLParser

from siri.report import style
from siri.report.html import write_report

PICTURES = ("report.html", "training.png", "pareto.png", "front.png", "updates.png", "time.png", "packing.png")


class Page(HTMLParser):
    """Checks that tags are closed, and gathers what the tests ask for."""

    VOID = ("meta", "img", "source", "link", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


def read(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    names = {entry.name for entry in folder.iterdir()}
    logs = {"config.json", "metrics.jsonl", "eval.jsonl", "plans.jsonl"}
    assert names <= logs | set(PICTURES)
    return Page(path.read_text())


def figure(chart, run, narrow):
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(style.rc_style()):
        drawn = chart(run, narrow=narrow)
        FigureCanvasAgg(drawn).draw()
    return drawn
