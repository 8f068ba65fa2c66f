"""Notebook 06 and the explorers of the codec, open in JupyterLab in a browser, and run."""

import os

import pytest
from lab import CODEC_CELLS, chromium, jupyterlab, run_in_lab, seen


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add what the browser shows and the servers say to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += seen(item.name)
    return report
