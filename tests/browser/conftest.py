"""A browser; the site, served; notebook 06 and the explorers of the codec, open in JupyterLab, and run."""

import os

import pytest
from build_site import build
from lab import CODEC_CELLS, chromium, evidence, jupyterlab, on_a_port, run_in_lab


@pytest.fixture(scope="session")
def browser():
    try:
        with chromium() as browser:
            yield browser
    except FileNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as address_and_token:
        yield folder, address_and_token


@pytest.fixture(scope="session")
def opened(browser, server):
    return run_in_lab(browser, *server, CODEC_CELLS)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site and serve it; return its folder and its address."""
    folder = tmp_path_factory.mktemp("built") / "site"
    build(folder)
    with on_a_port(folder) as address:
        yield folder, address


def pytest_itemcollected(item):
    item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add to the report of a failure what the pages and the servers said."""
    report = yield
    if report.failed:
        report.sections += evidence(item.name)
    return report
