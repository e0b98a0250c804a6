"""Open the report in headless Chromium, from disk: no console message, no request, hostile texts shown as text."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_report import HOSTILE, NAME, build

from simfarm.report.compare import compare_runs, write_comparison
from simfarm.report.html import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "about:blank",
]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


class Tab:
    """A page spoken to by the DevTools protocol; what it logs and requests is kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.count = socket, 0
        self.logged: list[dict[str, Any]] = []
        self.requested: list[str] = []
        self.loaded = False

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        self.count += 1
        await self.socket.send_json({"id": self.count, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json(timeout=60)
            self.note(message)
            if message.get("id") == self.count:
                assert "error" not in message, message
                return dict(message["result"])

    def note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.logged.append(message["params"])
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            case "Page.loadEventFired":
                self.loaded = True

    async def open(self, path: Path) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self.note(await self.socket.receive_json(timeout=60))

    async def value(self, expression: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


async def visit(page: Path, profile: Path, check: Any) -> Tab:
    assert CHROMIUM is not None
    browser = subprocess.Popen([CHROMIUM, f"--user-data-dir={profile}", *FLAGS], stderr=subprocess.DEVNULL)
    try:
        port, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port.is_file() and len(port.read_text().split()) == 2):
            assert browser.poll() is None and time.monotonic() < deadline, "Chromium does not start"
            await asyncio.sleep(0.1)
        base = f"http://127.0.0.1:{port.read_text().split()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/json/list") as answer:
                address = next(t["webSocketDebuggerUrl"] for t in await answer.json() if t["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                await tab.open(page)
                await check(tab)
                return tab
    finally:
        browser.terminate()
        browser.wait(30)


TEXTS = "[...document.querySelectorAll('#example .card .text')].map(e => e.textContent)"


def test_the_report_works_in_a_browser(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", rates={NAME: 0.5, "ppo": 0.8}, texts=HOSTILE, n=10)
    write_report(folder)

    async def check(tab: Tab) -> None:
        assert await tab.value("document.title") == "simfarm: tiny, seed 3"
        shown = []
        for _ in range(10):
            shown += await tab.value(TEXTS)
            await tab.value("document.getElementById('next').click()")
        assert {f"ppo {text}" for text in HOSTILE} <= set(shown)
        assert await tab.value("document.querySelectorAll('img, iframe, #example script').length") == 0
        assert NAME in await tab.value("[...document.querySelectorAll('#methods tbody th')].map(e => e.textContent)")
        # sorting: by win rate, ascending on the second click, what is missing last
        order = "[...document.querySelectorAll('#methods table')[0].tBodies[0].rows].map(r => r.cells[1].textContent)"
        button = "document.querySelectorAll('#methods thead button')[1].click()"
        await tab.value(button)
        assert await tab.value(order) == ["80.0", "50.0", "–"]
        await tab.value(button)
        assert await tab.value(order) == ["50.0", "80.0", "–"]
        # figures enlarge and shrink again
        zoom = "document.querySelector('#methods figure button.zoom')"
        width_of = "document.querySelector('#methods figure svg').getBoundingClientRect().width"
        usual = await tab.value(width_of)
        await tab.value(f"{zoom}.click()")
        assert await tab.value(width_of) > 1.5 * usual
        assert await tab.value(f"{zoom}.getAttribute('aria-pressed')") == "true"
        await tab.value(f"{zoom}.click()")
        assert await tab.value(width_of) == usual
        # filters
        for control, value, event, count in (
            ("tag", "ppo: baseline preferred", "change", 2),
            ("category", "plan", "change", 1),
            ("search", "nothing like it", "input", 0),
        ):
            await tab.value(
                f"(() => {{ const e = document.getElementById('{control}'); e.value = {json.dumps(value)};"
                f" e.dispatchEvent(new Event('{event}')); }})()"
            )
            assert await tab.value("document.getElementById('item').length") == count
        assert await tab.value(TEXTS) == []
        for width in (390, 1280):
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
            )
            assert await tab.value("document.documentElement.scrollWidth") <= width

    tab = asyncio.run(visit(folder / "report.html", tmp_path / "profile", check))
    assert tab.logged == []
    assert tab.requested == [(folder / "report.html").as_uri()]


def test_the_comparison_works_in_a_browser(tmp_path: Path) -> None:
    folders = [build(tmp_path / NAME.replace("/", ""), rates={NAME: 0.5, "ppo": 0.8}, n=10)]
    folders.append(build(tmp_path / "other", rates={"ppo": 0.3}, n=10))
    page = tmp_path / "compare.html"
    write_comparison(compare_runs(folders), page)

    async def check(tab: Tab) -> None:
        assert await tab.value("document.title") == "simfarm: 2 runs compared"
        assert await tab.value("document.querySelectorAll('img, iframe').length") == 0
        rows = "[...document.querySelectorAll('#methods table')[0].tBodies[0].rows]"
        rates = f"{rows}.map(r => Number(r.cells[2].textContent))"
        await tab.value("document.querySelectorAll('#methods thead button')[2].click()")
        assert await tab.value(rates) == [80, 50, 30]
        for width in (390, 1280):
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
            )
            assert await tab.value("document.documentElement.scrollWidth") <= width

    tab = asyncio.run(visit(page, tmp_path / "profile", check))
    assert tab.logged == []
    assert tab.requested == [page.as_uri()]
