"""The page of `qa-flax report` in a real Chromium: click, search, filter, and nothing fetched."""

import json

import pytest
import report_cases
from browser import browser
from report_cases import HOSTILE, LONE, OUTCOMES

from qa_flax.cli import main

pytestmark = pytest.mark.slow

MISTAKES = sum(outcome != "right" for outcome in OUTCOMES.values())
STATUS = "document.getElementById('status').textContent"
SHOWN = "[...document.querySelectorAll('.question')].map(one => one.textContent)"
LOADED = "document.documentElement.dataset.loaded"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A small page that compares two evaluations, and one with 5,400 questions."""
    folder = tmp_path_factory.mktemp("pages")
    report_cases.write(folder / "other", changes={"right": "Dresden", "empty": "Ada Lovelace"})
    data = report_cases.write(folder / "small")
    small = [str(folder / "small"), "--data", str(data)]
    main(["report", *small, "--compare", str(folder / "other")])
    data = report_cases.write(folder / "large", copies=600)
    main(["report", str(folder / "large"), "--data", str(data)])
    return {name: folder / name / "eval_report.html" for name in ("small", "large")}


@pytest.fixture
def tab(tmp_path, pages):
    with browser(tmp_path) as page:
        page.open(pages["small"])
        page.wait(LOADED)
        yield page
        assert page.messages == []
        assert page.requests == [pages["small"].as_uri(), *["data:,"] * (len(page.requests) - 1)]


def test_a_search_a_filter_and_a_click(tab):
    assert tab.run(STATUS) == f"{MISTAKES} questions of {len(OUTCOMES)}."
    tab.click("#search")
    tab.type("RIVER")
    tab.wait(f"{STATUS} !== '{MISTAKES} questions of {len(OUTCOMES)}.'")
    assert tab.run(SHOWN) == [], "no mistake has it in its question, answer or context"
    tab.click(".chip[data-outcome=all]")
    tab.wait(f"{STATUS} === '2 questions of 9.'")
    tab.run("document.getElementById('search').value = ''")
    tab.run("document.getElementById('search').dispatchEvent(new Event('input'))")
    tab.wait(f"{STATUS} === '9 questions.'")
    tab.click(".chip[data-outcome='3']")
    assert tab.run(SHOWN) == ["Who is it?"]
    assert tab.run("document.querySelector('.chip[aria-pressed=true]').textContent") == (
        "should have been empty"
    )
    tab.click("summary")
    tab.wait("document.querySelector('details').open && document.querySelector('.context')")
    assert tab.run("document.querySelector('mark.answer').textContent") == "answer"
    cells = "[...document.querySelectorAll('.nbest td')].map(one => one.textContent)"
    assert tab.run(cells)[:4] == ["answer", "75%", "Elbe", "10%"]


def test_a_click_on_a_group_an_outcome_or_a_change_shows_its_questions(tab):
    groups = "[...document.querySelectorAll('[data-slice=\"0\"]')].map(one => one.textContent)"
    assert tab.run(groups) == ["who, whose, whom", "which", "when", "where", "other"]
    tab.click("[data-slice='0'][data-group='1']")
    assert tab.run("document.getElementById('slice').textContent") == "Question word: which ✕"
    assert sorted(tab.run(SHOWN)) == [
        "Which river flows north?",
        "Which river flows through Dresden?",
    ]
    tab.click("#slice")
    assert tab.run(STATUS) == "9 questions."
    tab.click(".legend [data-outcome='4']")
    assert tab.run(SHOWN) == ["Who wrote the first program?"]
    tab.click("[data-change='1']")
    assert tab.run(SHOWN) == ["Which river flows through Dresden?"]
    assert "otherDresden" in tab.run("document.querySelector('.pair').textContent")


def test_the_keyboard_opens_a_question(tab):
    tab.run("document.querySelectorAll('summary')[1].focus()")
    assert not tab.run("document.querySelectorAll('details')[1].open")
    tab.press("Enter", 13, "\r")
    tab.wait("document.querySelectorAll('details')[1].open")
    outlined = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.run(outlined) == "solid", "the focus can be seen"


def test_hostile_texts_are_shown_as_they_are(tab):
    tab.click("#search")
    tab.type("when? </script>")
    tab.wait(f"{STATUS} === '1 question of 9.'")
    assert tab.run(SHOWN) == [f"When? {HOSTILE}"]
    tab.click("summary")
    tab.wait("document.querySelectorAll('.nbest').length === 1")
    assert LONE[-30:-1] in tab.run("document.querySelector('.nbest').textContent")
    assert tab.run("document.querySelectorAll('.question b, .context b, .nbest b').length") == 0
    assert tab.run("document.scripts.length") == 3, "the settings, the first rows, the script"


def test_right_to_left_and_chinese(tab):
    directions = """[...document.querySelectorAll('.question')].map(
        one => [one.textContent, getComputedStyle(one).direction])"""
    found = dict(tab.run(directions))
    assert found["أين ولدت؟"] == "rtl"
    assert found["柏林墙何时建成?"] == "ltr"
    script = "CSS.supports('font-family', 'x') && document.fonts.status"
    assert tab.run(script) == "loaded"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_phones_and_desktops_in_light_and_dark(tmp_path, pages, width, scheme):
    with browser(tmp_path, width, scheme=scheme) as page:
        page.open(pages["small"])
        page.wait(LOADED)
        assert page.run("document.documentElement.scrollWidth") == width, "nothing sticks out"
        colors = page.run(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.body).color]"
        )
        light = [sum(map(int, color[4:-1].split(","))) for color in colors]
        assert (light[0] > light[1]) == (scheme == "light")
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_many_questions_are_there_soon(tmp_path, pages):
    timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    with browser(tmp_path) as page:
        seconds = []
        for _ in range(3):  # the browser itself is slow at its first page
            page.open(pages["large"])
            seconds.append(page.run(timing) / 1000)
        assert min(seconds) < 2
        assert page.run("document.querySelectorAll('details').length") == 50
        page.wait(LOADED)
        assert page.run(STATUS) == "3,600 questions of 5,400."
        page.click("#more")
        assert page.run("document.querySelectorAll('details').length") == 100
        page.click("#search")
        page.type("(599)")
        page.wait(f"{STATUS} === '6 questions of 5,400.'")
        assert page.messages == []


def test_the_page_works_from_a_server(tmp_path, pages):
    """Over HTTP, where a browser asks for an icon unless the page has one, nothing is fetched."""
    import functools
    import http.server
    import threading

    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=pages["small"].parent
    )
    handler.log_message = None
    asked = []

    class Server(http.server.ThreadingHTTPServer):
        def finish_request(self, request, address):
            asked.append(address)
            super().finish_request(request, address)

    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser(tmp_path) as page:
            address = f"http://127.0.0.1:{server.server_port}/eval_report.html"
            page.call("Page.navigate", url=address)
            page.wait(LOADED)
            assert page.messages == []
            paths = [url for url in page.requests if not url.startswith("data:")]
        server.shutdown()
    assert paths == [address]
    assert json.dumps(asked).count("127.0.0.1") <= 2, "a page and at most a spare connection"
