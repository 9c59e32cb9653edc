"""Names that would be markup, on the pages that show them: no script runs, no link is theirs."""

from __future__ import annotations

import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import expect

from tests.report.test_escaping import ODD, odd_report, rendered
from wua_mlflow.report.render import description, html_report, markdown_report
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.ui_view import run_address

pytestmark = [pytest.mark.browser]


@pytest.fixture
def watched(page):
    """A page, with the dialogs that it opened and what it asked the network for."""
    page.events = []
    page.on("dialog", lambda dialog: (page.events.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: page.events.append(request.url))
    return page


def harmless(page) -> None:
    assert page.evaluate("window.hit") is None
    links = page.evaluate("[...document.querySelectorAll('a')].map(link => link.href)")
    assert not [link for link in links if link.lower().startswith(("javascript:", "data:"))]
    assert page.locator("img[src=x], svg[onload]").count() == 0


def test_the_report_as_a_page_of_its_own_and_as_markdown(watched):
    pictures = {"comparison": b"png", ODD[1]: b"png"}
    for content in (html_report(odd_report(), pictures), rendered(markdown_report(odd_report()))):
        watched.set_content(content, wait_until="load")
        watched.wait_for_timeout(100)
        harmless(watched)
        expect(watched.get_by_text(ODD[0]).first).to_be_visible()
    assert [event for event in watched.events if not event.startswith("data:")] == []


@pytest.mark.slow
def test_mlflows_own_page_of_a_run(watched, server):
    client = MlflowClient(server)
    experiment = client.create_experiment("names")
    report = odd_report()
    run_id = client.create_run(experiment, run_name=ODD[0]).info.run_id
    write(client, run_id, params={"data": ODD[1], "model": ODD[2]},
          tags={"mlflow.note.content": description(report), "mlflow.runName": report.title},
          files={"report.md": markdown_report(report), "report.html": html_report(report, {})})
    client.set_terminated(run_id)
    for page in ("", "/artifacts/report.md", "/artifacts/report.html"):
        watched.goto(run_address(server, experiment, run_id) + page)
        expect(watched.get_by_text(ODD[0]).first).to_be_visible()
        watched.wait_for_timeout(2000)
        harmless(watched)
        for frame in watched.frames:
            assert frame.evaluate("window.hit") is None
