"""The pages of a run in a real browser, which .ci/run installs."""

import json
import threading

import pytest

from siri.report.html import write_report
from siri.report.live import LiveServer
from siri.store.jsonl import MetricsLog
from siri.store.responses import Responses
from tests.support.browser import Browser, chromium
from tests.support.synthetic_run import make_run
from tests.unit.report.test_live import response

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here; apt-get install chromium")
HOSTILE = "<img src=x onerror=\"document.title='run'\">"


def keep(folder, done):
    right = [response(number, f"right, {HOSTILE}") for number in range(4)]
    wrong = [
        response(number, "wrong " * 400, score=0.0, tokens=90 + number, truncated=number > 5) for number in (4, 5, 6)
    ]
    Responses(folder, 4).write_evaluation(done, "heldout.jsonl", [*right, *wrong])


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run", upto=30, recipe=HOSTILE)
    keep(folder, 0)
    (folder / "log.txt").write_text("2026-11-26 12:00:00+00:00  step 30/120\n")
    return folder


def paths(browser):
    return browser.run(
        "[...document.querySelectorAll('#charts figure:not([hidden]) path')].map(p => p.getAttribute('d'))"
    )


def overflow(browser):
    """What is wider than the window and does not scroll by itself."""
    return browser.run(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )


def test_a_page_follows_a_run(run, tmp_path):
    with LiveServer(run, 0) as server, Browser() as browser:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        browser.open(server.url)
        browser.wait("document.querySelectorAll('#charts path').length > 8")
        assert "step 30 of 120" in browser.run("document.querySelector('#state').textContent")
        assert browser.run("document.querySelector('h1').textContent") == HOSTILE
        titles = browser.run("[...document.querySelectorAll('#charts figure:not([hidden]) b')].map(b => b.textContent)")
        assert {"Response length, tokens", "Accuracy", "Loss", "Gradient norm", "Clipped tokens"} <= set(titles)
        assert "KL to the sampler, nats" in titles and "GPU memory" not in titles, (
            "what the run does not have is left out"
        )

        # charts move
        before = paths(browser)
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        for step in (30, 31):
            MetricsLog(run / "metrics.jsonl").append(last | {"step": step, "loss": 0.5, "grad_norm": 3.0})
        browser.wait("document.querySelector('#state').textContent.startsWith('step 32 of 120')")
        after = paths(browser)
        assert len(after) == len(before) and all(
            chart_before != chart_after for chart_before, chart_after in zip(before, after, strict=True)
        )

        # a pointer shows the values of a step
        box = browser.run(
            "(r => [r.x, r.y, r.width, r.height])(document.querySelector('#charts svg').getBoundingClientRect())"
        )
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] * 0.6, y=box[1] + box[3] / 2)
        browser.wait("document.querySelector('#charts figcaption span').textContent.startsWith('step ')")

        # samples open, and are text
        browser.wait("document.querySelectorAll('#list details').length === 7")
        browser.run("document.querySelector('#list summary').click()")
        assert browser.run("document.querySelector('#list details').open")
        assert HOSTILE in browser.run("document.querySelector('#list details').innerText")
        browser.run("which.value = 'wrong'; which.dispatchEvent(new Event('change'))")
        assert browser.run("document.querySelectorAll('#list details').length") == 3
        browser.run("document.querySelector('#longest').click()")
        assert "96 tokens" in browser.run("document.querySelector('#list summary').textContent")
        keep(run, 20)
        browser.wait("document.querySelectorAll('#file option').length === 2")
        assert browser.run("document.querySelector('#file').value") == "eval-000000-heldout", "what is read stays"

        # nothing comes from elsewhere, and no script of the run's runs
        assert {url for url in browser.asked if not url.startswith(server.url)} <= {"about:blank"}
        assert browser.errors == [] and browser.run("document.title") == f"{HOSTILE}, live"
        assert browser.run("document.querySelectorAll('img').length") == 0
        for width in (1280, 390):
            browser.resize(width)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert overflow(browser) == [], width
            browser.picture(tmp_path / f"live-{width}.png")

        server.shutdown()
        thread.join()
        server.server_close()
        browser.wait("!document.querySelector('#fault').hidden")
        assert "the server does not answer" in browser.run("document.querySelector('#fault').textContent")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_report_fits_every_window(tmp_path, width, dark):
    folder = make_run(tmp_path / "run", eval_every=10)
    keep(folder, 0)
    write_report(folder)
    with Browser(width=width, dark=dark) as browser:
        for name in ("report.html", "samples.html"):
            browser.open((folder / name).as_uri())
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert overflow(browser) == [], name
            wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
            assert browser.run(wide) == 0 or width < 1280, "a table is cut off where there is room"
            assert browser.errors == [], name
            assert all(url.startswith(("file:", "data:", "about:")) for url in browser.asked)
            browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert browser.run("document.documentElement.scrollWidth") <= width, name
            browser.picture(tmp_path / f"{name}-{width}.png")
